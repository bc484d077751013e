"""Our version, where the thin client can read it: `importlib.metadata` would triple its start-up time.

`tests/wire` compares it with the version of the installed package.
"""

VERSION = "0.1.0"

"""SSH to guests. The only package that imports asyncssh, apart from the simulated guests."""

import ctypes.util


def _load_library() -> None:
    """Import asyncssh without its search for liboqs and nettle.

    For each name that they may have it runs ldconfig, gcc and ld, whichever the PATH has, at each start of a
    daemon; and what they offer (key exchanges and MACs) our connections don't use.
    """
    search = ctypes.util.find_library

    def find_nothing(name: str) -> str | None:  # noqa: ARG001
        return None

    ctypes.util.find_library = find_nothing
    try:
        import asyncssh  # noqa: F401, PLC0415 - everybody after us finds it loaded
    finally:
        ctypes.util.find_library = search


_load_library()

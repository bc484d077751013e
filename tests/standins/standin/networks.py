"""Lima's networks between instances, of which an instance without any still gets the file."""

from . import names

_FILE = """\
# Networks between instances. The stand-in has none but QEMU's user network.
networks: {}
"""


def reconcile() -> None:
    """Make the file that describes networks. Most commands do."""
    path = names.config_dir() / "networks.yaml"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_FILE, encoding="utf-8")

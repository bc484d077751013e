"""Lima's networks between instances, of which an instance without any still gets the file."""

from . import names
from .log import LOG, quoted

_FILE = """\
# Networks between instances. The stand-in has none but QEMU's user network.
networks: {}
"""


def reconcile() -> None:
    """Make the file that describes networks, and warn of folders that hold no instance. Most commands do."""
    path = names.config_dir() / "networks.yaml"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_FILE, encoding="utf-8")
    for name in names.instance_names():
        yaml = names.home() / name / "lima.yaml"
        if not yaml.exists():
            reason = f"open {yaml}: no such file or directory"
            LOG.warning(f"Skipping instance {quoted(name)} during network reconcile: {reason}")

"""What to do after a session that ended by no fault of its command."""

from pathlib import Path

_LOST = (
    "what it wrote into its project is kept; start it again, and if that happens again, see"
    " {home}/logs/daemon.log"
)

_NEXT_STEPS = {
    "vm-died": _LOST,
    "ssh-link-lost": _LOST,
    "guest-failed": _LOST,
    "journal-failed": "make room in {home}, then start it again",
}


def next_step(code: str, home: Path) -> str:
    """Return a line about what to do, or "" where the message says it. `home` is the data folder."""
    return _NEXT_STEPS.get(code, "").format(home=home)

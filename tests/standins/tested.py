"""Whether Lima's code, its tests and the stand-in are as they were when all of them last passed.

They are a quarter of what real VMs take in `make test`, and say nothing new until one of them changes. The
record beside this file has a digest of their files, and the `limactl` that they passed with. As a program,
this writes it; `make test-lima` does that when those that `make test` would run have passed.
"""

import sys
from hashlib import sha256
from pathlib import Path

from standins.choice import choices

HERE = Path(__file__).resolve().parent
TREE = HERE.parents[1]
RECORD = HERE / "tested.txt"
WHAT = ("drivers", "tests/contract", "tests/lima", "tests/lima_contract", "tests/standins")
FILES = ("tests/conftest.py", "tests/data_folder.py")


def digest() -> str:
    """Return the digest of all that the tests of Lima are about."""
    found = sha256()
    inside = (path for folder in WHAT for path in (TREE / folder).rglob("*") if path.is_file())
    for path in sorted((*inside, *(TREE / file for file in FILES))):
        if path.suffix != ".pyc" and path != RECORD:
            content = path.read_bytes()
            found.update(f"{path.relative_to(TREE).as_posix()}\0{len(content)}\0".encode() + content)
    return found.hexdigest()


def passed_with() -> str:
    """Return the `limactl` that all passed with as it is now; nothing when something has changed."""
    recorded, _, label = RECORD.read_text(encoding="utf-8").strip().partition(" ")
    return label if recorded == digest() else ""


def main() -> None:
    """Record that all of them have passed, with the real `limactl` where it is."""
    labels = [choice.label for kind in ("real", "stand-in") for choice in choices(kind)]
    RECORD.write_text(f"{digest()} {labels[0]}\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())

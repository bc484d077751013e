"""Writing a small ISO 9660 image with Rock Ridge names, as guests mount it to learn who they are.

Source: ECMA-119 for the layout; IEEE P1281 and P1282 (SUSP, Rock Ridge) for names and modes.
"""

import struct
import time
from collections.abc import Mapping
from typing import Final

SECTOR: Final = 2048
_FIRST_FREE: Final = 18
_FILE_MODE: Final = 0o100755
_FOLDER_MODE: Final = 0o040755
_MADE_BY: Final = b"RRIP_1991A"


def image(label: str, files: Mapping[str, bytes]) -> bytes:
    """Return an image that holds these files, by their paths. Folders come from the paths."""
    root = _Folder("")
    for path, data in files.items():
        *parents, name = path.split("/")
        folder = root
        for parent in parents:
            folder = folder.folders.setdefault(parent, _Folder(parent, folder))
        folder.files[name] = data
    folders = root.all()
    for number, folder in enumerate(folders, 1):
        folder.number = number
    table = b"".join(folder.table_entry("<") for folder in folders)
    table_sectors = _sectors(len(table))
    position = _FIRST_FREE + 2 * table_sectors
    for folder in folders:
        folder.sector = position
        position += _sectors(folder.size())
    contents = []
    for folder in folders:
        for name, data in folder.files.items():
            folder.file_sectors[name] = position
            position += _sectors(len(data))
            contents.append(_padded(data))
    head = _descriptor(label, position, len(table), table_sectors, root)
    tables = [
        _padded(b"".join(folder.table_entry(order) for folder in folders), table_sectors) for order in "<>"
    ]
    return b"".join(
        [bytes(16 * SECTOR), head, _terminator(), *tables, *(f.records() for f in folders), *contents]
    )


class _Folder:
    """A folder while the image is laid out."""

    def __init__(self, name: str, parent: "_Folder | None" = None) -> None:
        self.name = name
        self.parent = parent or self
        self.folders: dict[str, _Folder] = {}
        self.files: dict[str, bytes] = {}
        self.file_sectors: dict[str, int] = {}
        self.sector = 0
        self.number = 1

    def all(self) -> list["_Folder"]:
        """Return this folder and those in it, level by level, as a path table wants them."""
        found = [self]
        for folder in found:
            found += [inner for _, inner in sorted(folder.folders.items())]
        return found

    def table_entry(self, order: str) -> bytes:
        name = _primary(self.name, is_folder=True) if self.name else b"\0"
        entry = struct.pack(order + "BBIH", len(name), 0, self.sector, self.parent.number) + name
        return entry + bytes(len(name) % 2)

    def size(self) -> int:
        return len(self.records())

    def records(self) -> bytes:
        """Return the folder's own bytes: whole sectors, no record across two of them."""
        own = _SHARING_PROTOCOL + _extension() if self.parent is self else b""
        found = [
            _record(b"\0", self.sector, SECTOR, own + _attributes(_FOLDER_MODE), is_folder=True),
            _record(b"\1", self.parent.sector, SECTOR, _attributes(_FOLDER_MODE), is_folder=True),
        ]
        entries: list[tuple[bytes, bytes]] = []
        for name, folder in self.folders.items():
            primary = _primary(name, is_folder=True)
            use = _name(name) + _attributes(_FOLDER_MODE)
            entries.append((primary, _record(primary, folder.sector, SECTOR, use, is_folder=True)))
        for name, data in self.files.items():
            primary = _primary(name, is_folder=False)
            use = _name(name) + _attributes(_FILE_MODE)
            sector = self.file_sectors.get(name, 0)
            entries.append((primary, _record(primary, sector, len(data), use, is_folder=False)))
        found += [record for _, record in sorted(entries)]
        return _fill_sectors(found)


def _fill_sectors(records: list[bytes]) -> bytes:
    filled = b""
    for record in records:
        room = SECTOR - len(filled) % SECTOR
        if len(record) > room:
            filled += bytes(room)
        filled += record
    if len(filled) > SECTOR:
        raise ValueError("a folder has more entries than fit one sector")
    return _padded(filled)


def _record(name: bytes, sector: int, size: int, use: bytes, *, is_folder: bool) -> bytes:
    """Return one entry of a folder, with what Rock Ridge adds to it."""
    head = struct.pack("<BI", 0, sector) + struct.pack(">I", sector) + _both(size) + _date()
    head += bytes([2 if is_folder else 0, 0, 0]) + struct.pack("<H", 1) + struct.pack(">H", 1)
    head += bytes([len(name)]) + name
    head += bytes((len(head) + 1) % 2)
    record = head + use
    record += bytes((len(record) + 1) % 2)
    return bytes([len(record) + 1]) + record


def _descriptor(label: str, total: int, table_size: int, table_sectors: int, root: _Folder) -> bytes:
    at = time.strftime("%Y%m%d%H%M%S00", time.gmtime()).encode() + b"\0"
    never = b"0" * 16 + b"\0"
    found = b"\1CD001\1\0" + b" " * 32 + label.encode().ljust(32) + bytes(8) + _both(total) + bytes(32)
    for number in (1, 1, SECTOR):
        found += struct.pack("<H", number) + struct.pack(">H", number)
    found += _both(table_size) + struct.pack("<II", _FIRST_FREE, 0)
    found += struct.pack(">II", _FIRST_FREE + table_sectors, 0)
    found += _record(b"\0", root.sector, SECTOR, b"", is_folder=True)
    found += b" " * (128 * 4 + 37 * 3) + at + at + never + never + b"\1\0"
    return found.ljust(SECTOR, b"\0")


def _terminator() -> bytes:
    return b"\xffCD001\1".ljust(SECTOR, b"\0")


_SHARING_PROTOCOL: Final = b"SP\x07\x01\xbe\xef\x00"


def _extension() -> bytes:
    return b"ER" + bytes([8 + len(_MADE_BY), 1, len(_MADE_BY), 0, 0, 1]) + _MADE_BY


def _attributes(mode: int) -> bytes:
    links = 2 if mode == _FOLDER_MODE else 1
    return b"PX\x24\x01" + _both(mode) + _both(links) + _both(0) + _both(0)


def _name(name: str) -> bytes:
    data = name.encode()
    return b"NM" + bytes([5 + len(data), 1, 0]) + data


def _primary(name: str, *, is_folder: bool) -> bytes:
    """Return a name that every reader knows: capitals, digits, underscores and one dot."""
    stem, dot, suffix = name.upper().rpartition(".")
    if not dot:
        stem, suffix = suffix, ""
    clean = ["".join(c if c.isalnum() and c.isascii() else "_" for c in part) for part in (stem, suffix)]
    return "_".join(filter(None, clean)).encode() if is_folder else f"{clean[0]}.{clean[1]};1".encode()


def _both(number: int) -> bytes:
    return struct.pack("<I", number) + struct.pack(">I", number)


def _date() -> bytes:
    now = time.gmtime()
    return bytes([now.tm_year - 1900, now.tm_mon, now.tm_mday, now.tm_hour, now.tm_min, now.tm_sec, 0])


def _sectors(size: int) -> int:
    return -(-size // SECTOR)


def _padded(data: bytes, sectors: int | None = None) -> bytes:
    return data.ljust((_sectors(len(data)) if sectors is None else sectors) * SECTOR, b"\0")

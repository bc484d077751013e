"""The resident helper of a claude-vm guest: gives a clone its identity, its mounts and its files.

It runs as root from early boot on, is part of every snapshot, and so answers milliseconds after a restore,
long before SSH does. It speaks newline-delimited JSON with the host over a virtio-serial port and holds the
guest's SSH port: connections wait in the kernel's queue until `identify` has reseeded the random pool and
placed the keys; only then sshd, which waits since before the snapshot, may accept them. So no handshake can
use the random state that all clones of one snapshot share.

Requests are objects ``{"id": text, "op": text, ...}``; answers are ``{"id": ..., "ok": true, ...}`` or
``{"id": ..., "ok": false, "error": text}``. A line that is too long is dropped: the next newline
starts afresh.

Standard library only, because it is part of the guest's image; there ``__main__`` in the folder above starts
it. Imports are felt in a boot under software emulation, so there is no pathlib; and what can be done by a
system call is done by one, because a process costs some tenths of a second there.
"""

from .serving import main

__all__ = ["main"]

"""SSH between host and guest: Lima's own key, the options of each connection, and the file for ``ssh -F``."""

import fcntl
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

from . import names
from .errors import LimaError
from .instance import Instance
from .log import quoted

ADDRESS: Final = "127.0.0.1"

_HEAD: Final = """\
# For `ssh -F`. Made at each start of the instance: changes don't last.
"""


def public_keys(*, dot_ssh: bool) -> list[str]:
    """Return the public keys that guests accept. Lima's own pair is made first, if it isn't there.

    Raises:
        LimaError: it can't be made.
    """
    folder = names.config_dir()
    private = folder / "user"
    if not private.exists():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _make_key(folder, private)
    paths = [folder / "user.pub"]
    if dot_ssh:
        paths += sorted((Path.home() / ".ssh").glob("*.pub"))
    return [path.read_text(encoding="utf-8").strip() for path in paths]


def options(found: Instance) -> list[str]:
    """Return what each connection to an instance is told by ``-o``."""
    settings = found.settings()
    identities = [names.config_dir() / "user"]
    if settings["ssh"]["loadDotSSHPubKeys"]:
        public = sorted((Path.home() / ".ssh").glob("*.pub"))
        identities += [path.with_suffix("") for path in public if path.with_suffix("").exists()]
    has_gssapi = _ssh_takes_gssapi()
    return [
        *(f'IdentityFile="{path}"' for path in identities),
        "StrictHostKeyChecking=no",
        "UserKnownHostsFile=/dev/null",
        "NoHostAuthenticationForLocalhost=yes",
        "PreferredAuthentications=publickey",
        "Compression=no",
        "BatchMode=yes",
        "IdentitiesOnly=yes",
        *(["GSSAPIAuthentication=no"] if has_gssapi else []),
        f'Ciphers="^{_ciphers()}"',
        f"User={settings['user']['name']}",
        "ControlMaster=auto",
        f'ControlPath="{found.folder / "ssh.sock"}"',
        "ControlPersist=yes",
        *(["ForwardAgent=yes"] if settings["ssh"]["forwardAgent"] else []),
        *(["ForwardX11=yes"] if settings["ssh"]["forwardX11"] else []),
        *(["ForwardX11Trusted=yes"] if settings["ssh"]["forwardX11Trusted"] else []),
    ]


def arguments(chosen: list[str], *, master: bool = True) -> list[str]:
    """Return ssh's arguments for some options; without `master`, a connection of its own."""
    if master:
        return ["-F", "/dev/null", *(word for option in chosen for word in ("-o", option))]
    kept = [option for option in chosen if not option.startswith("Control")]
    alone = ["-o", "ControlMaster=no", "-o", "ControlPath=none", "-o", "ControlPersist=no"]
    return [*alone, *arguments(kept)]


def write_config(found: Instance, chosen: list[str], port: int) -> None:
    """Write the instance's file for ``ssh -F``."""
    lines = [f"Host {found.hostname}"]
    for option in [*chosen, f"Hostname={ADDRESS}", f"Port={port}"]:
        key, _, value = option.partition("=")
        lines.append(f"  {key} {value}")
    path = found.ssh_config_file
    path.write_text(_HEAD + "\n".join(lines) + "\n", encoding="utf-8")
    path.chmod(0o600)


def shell_command(settings: dict[str, Any], words: list[str], workdir: str, shell: str) -> str:
    """Return the line that a guest's login shell gets: a login shell in a folder, with a command or none."""
    place = f"cd {shlex.quote(workdir)} || exit 1" if workdir else "false"
    line = f"{place} ; exec {shlex.quote(shell or settings['user']['shell'])} -l"
    if not words:
        return line
    parts, assignments = [], True
    for word in words:
        assignments = assignments and "=" in word
        if assignments:
            key, _, value = word.partition("=")
            parts.append(f"{key}={shlex.quote(value)}")
        else:
            parts.append(shlex.quote(word))
    return f"{line} -c {shlex.quote(' '.join(parts))}"


def _make_key(folder: Path, private: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        command = ["ssh-keygen", "-t", "ed25519", "-q", "-N", "", "-C", "lima", "-f", str(private)]
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=False)
    finally:
        os.close(handle)
    if done.returncode:
        output = (done.stdout + done.stderr).decode(errors="replace")
        raise LimaError(
            f"failed to run [{' '.join(command)}]: {quoted(output)}: exit status {done.returncode}"
        )


def _ssh_takes_gssapi() -> bool:
    program = shutil.which("ssh")
    if program is None:
        raise LimaError('exec: "ssh": executable file not found in $PATH')
    command = [program, "-o", "GSSAPIAuthentication=no", "-V"]
    done = subprocess.run(command, capture_output=True, check=False)
    return not re.search(rb"Unsupported option \"gssapiauthentication\"", done.stderr)


def _ciphers() -> str:
    try:
        fast = " aes " in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        fast = False
    aes = "aes128-gcm@openssh.com,aes256-gcm@openssh.com"
    return aes if fast else "chacha20-poly1305@openssh.com"

"""What a guest reads to learn who it is: a CD with cloud-init's files and the scripts of a boot.

The instance id changes at each start. A guest has booted, to the host agent, once ``/run/lima-boot-done``
holds it.

Source: cloud-init's "NoCloud" data source; Lima's names of files and variables.
"""

import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from . import iso9660, sshkeys
from .instance import Instance

GATEWAY: Final = "192.168.5.2"
GUEST_ADDRESS: Final = "192.168.5.15"
NETWORK: Final = "192.168.5.0/24"
_DNS: Final = "192.168.5.3"
_INTERFACE: Final = "eth0"
_PROXIES: Final = ("ftp_proxy", "http_proxy", "https_proxy", "no_proxy")

_BOOT: Final = """\
#!/bin/sh
# Runs at each boot, from the CD that is mounted at LIMA_CIDATA_MNT: the instance's scripts, then the mark
# of the end.
set -eu
rm -f /run/lima-boot-done
for file in lima.env param.env etc_environment; do
    while read -r line; do
        case $line in '' | '#'*) ;; *) export "$line" ;; esac
    done <"$LIMA_CIDATA_MNT/$file"
done
status=0
for script in "$LIMA_CIDATA_MNT"/provision.system/*; do
    [ -e "$script" ] || continue
    "$script" || status=1
done
for script in "$LIMA_CIDATA_MNT"/provision.user/*; do
    [ -e "$script" ] || continue
    sudo -iu "$LIMA_CIDATA_USER" sh -c "$(cat "$script")" || status=1
done
echo "$LIMA_CIDATA_IID" >/run/lima-boot-done
exit "$status"
"""

_PER_BOOT: Final = """\
#!/bin/sh
set -eux
LIMA_CIDATA_MNT=/mnt/lima-cidata
export LIMA_CIDATA_MNT
mkdir -p -m 700 "$LIMA_CIDATA_MNT"
mount -o ro,mode=0700,dmode=0700,overriderockperm,exec,uid=0 /dev/disk/by-label/cidata "$LIMA_CIDATA_MNT"
exec "$LIMA_CIDATA_MNT"/boot.sh
"""


def write_cloud_config(found: Instance) -> None:
    """Write the cloud-config that a user may look at; guests get theirs on the CD."""
    path = found.folder / "cloud-config.yaml"
    path.unlink(missing_ok=True)
    path.write_text(_user_data(found.settings(), found.folder, boot_scripts=False), encoding="utf-8")
    path.chmod(0o444)


def write(found: Instance) -> str:
    """Write the instance's CD and return its new instance id."""
    settings, folder = found.settings(), found.folder
    instance_id = f"iid-{int(time.time())}"
    files = {
        "boot.sh": _BOOT,
        "etc_environment": _environment(settings),
        "lima.env": _variables(_facts(found, instance_id)),
        "meta-data": f"instance-id: {instance_id}\nlocal-hostname: {found.hostname}\n",
        "network-config": _network(folder, settings),
        "param.env": _variables({f"PARAM_{key}": value for key, value in settings["param"].items()}),
        "user-data": _user_data(settings, folder, boot_scripts=True),
    }
    for number, step in enumerate(settings["provision"]):
        files[f"provision.{step['mode']}/{number:08}"] = step["script"]
    image = iso9660.image("cidata", {path: text.encode() for path, text in files.items()})
    target = folder / "cidata.iso"
    target.unlink(missing_ok=True)
    target.write_bytes(image)
    return instance_id


def mac_address(folder: Path) -> str:
    """Return an instance's own address, always the same on one machine."""
    machine = "unknown"
    for path in (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id")):
        try:
            machine = path.read_text(encoding="utf-8").strip()
            break
        except OSError:
            continue
    digest = hashlib.sha256((machine + str(folder)).encode()).digest()
    return "52:55:55:" + ":".join(f"{byte:02x}" for byte in digest[:3])


def _facts(found: Instance, instance_id: str) -> dict[str, object]:
    settings = found.settings()
    user = settings["user"]
    facts: dict[str, object] = {
        "DEBUG": "false",
        "IID": instance_id,
        "NAME": found.name,
        "USER": user["name"],
        "UID": user["uid"],
        "COMMENT": "".join(c for c in user["comment"] if c.isprintable()),
        "HOME": user["home"],
        "SHELL": user["shell"],
        "HOSTHOME_MOUNTPOINT": "",
        "MOUNTS": 0,
        "MOUNTTYPE": settings["mountType"] or "9p",
        "DISKS": len(settings["additionalDisks"]),
        **_disks(settings["additionalDisks"]),
        "GUEST_INSTALL_PREFIX": settings["guestInstallPrefix"],
        "UPGRADE_PACKAGES": _flag(settings["upgradePackages"]),
        "CONTAINERD_USER": "",
        "CONTAINERD_SYSTEM": "",
        "SLIRP_DNS": _DNS,
        "SLIRP_GATEWAY": GATEWAY,
        "SLIRP_IP_ADDRESS": GUEST_ADDRESS,
        "UDP_DNS_LOCAL_PORT": 0,
        "TCP_DNS_LOCAL_PORT": 0,
        "ROSETTA_ENABLED": "false",
        "ROSETTA_BINFMT": "false",
        "SKIP_DEFAULT_DEPENDENCY_RESOLUTION": "",
        "VMTYPE": settings["vmType"],
        "VSOCK_PORT": 0,
        "VIRTIO_PORT": "",
        "PLAIN": _flag(settings["plain"]),
        "NO_CLOUD_INIT": "",
        "PASSWORDLESS_SUDO": _flag(settings["user"]["passwordlessSudo"]),
    }
    return {f"LIMA_CIDATA_{key}": value for key, value in facts.items()}


def _disks(wanted: list[dict[str, Any]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for number, disk in enumerate(wanted):
        facts = {
            "NAME": disk["name"],
            "DEVICE": f"vd{chr(ord('b') + number)}",
            "FORMAT": str(disk.get("format", True)).lower(),
            "FSTYPE": disk.get("fsType") or "",
            "FSARGS": " ".join(disk.get("fsArgs") or ()),
        }
        found |= {f"DISK_{number}_{key}": value for key, value in facts.items()}
    return found


def _flag(value: object) -> str:
    return "1" if value else ""


def _variables(values: Mapping[str, object]) -> str:
    return "".join(f"{key}={value}\n" for key, value in values.items())


def _environment(settings: dict[str, Any]) -> str:
    found = {key: str(value) for key, value in settings["env"].items()}
    if settings["propagateProxyEnv"]:
        for name in _PROXIES:
            value = os.environ.get(name) or os.environ.get(name.upper())
            if value:
                found[name] = found[name.upper()] = value
    return f"#LIMA-START\n{_variables(dict(sorted(found.items())))}#LIMA-END\n"


def _network(folder: Path, settings: dict[str, Any]) -> str:
    interface: dict[str, Any] = {
        "match": {"macaddress": mac_address(folder)},
        "dhcp4": True,
        "set-name": _INTERFACE,
        "dhcp4-overrides": {"route-metric": 200},
        "dhcp-identifier": "mac",
    }
    servers = _dns(settings)
    if servers:
        interface["nameservers"] = {"addresses": servers}
    return _yaml({"version": 2, "ethernets": {_INTERFACE: interface}})


def _dns(settings: dict[str, Any]) -> list[str]:
    if settings["dns"]:
        return [str(address) for address in settings["dns"]]
    return [_DNS] if settings["hostResolver"]["enabled"] else []


def _user_data(settings: dict[str, Any], folder: Path, *, boot_scripts: bool) -> str:
    user = settings["user"]
    account: dict[str, Any] = {"name": user["name"], "uid": str(user["uid"])}
    if user["comment"]:
        account["gecos"] = user["comment"]
    account |= {
        "homedir": user["home"],
        "shell": user["shell"],
        "sudo": "ALL=(ALL) NOPASSWD:ALL" if user["passwordlessSudo"] else "ALL=(ALL) ALL",
        "lock_passwd": bool(user["passwordlessSudo"]),
        "ssh-authorized-keys": sshkeys.public_keys(dot_ssh=settings["ssh"]["loadDotSSHPubKeys"]),
    }
    found: dict[str, Any] = {"growpart": {"mode": "auto", "devices": ["/"]}}
    if settings["upgradePackages"]:
        found |= {"package_update": True, "package_upgrade": True, "package_reboot_if_required": True}
    if settings["timezone"]:
        found["timezone"] = settings["timezone"]
    found["users"] = [account]
    if boot_scripts:
        script = {"content": _PER_BOOT, "owner": "root:root", "permissions": "0755"}
        script["path"] = "/var/lib/cloud/scripts/per-boot/00-lima.boot.sh"
        found["write_files"] = [script]
        servers = _dns(settings)
        if servers:
            found |= {"manage_resolv_conf": True, "resolv_conf": {"nameservers": servers}}
    found["bootcmd"] = [_WAIT_FOR_NETWORK.format(mac=mac_address(folder))]
    return "#cloud-config\n# vim:syntax=yaml\n\n" + _yaml(found)


_WAIT_FOR_NETWORK: Final = """\
until ip -4 addr show dev eth0 2>/dev/null | grep -q inet; do sleep 1; done # {mac}
"""


def _yaml(value: Any, indent: str = "") -> str:
    """Return a mapping as YAML in blocks; its leaves are JSON, which is YAML too."""
    lines = ""
    for key, inner in value.items():
        if isinstance(inner, dict):
            lines += f"{indent}{key}:\n{_yaml(inner, indent + '  ')}"
        elif isinstance(inner, list):
            lines += f"{indent}{key}:\n" + "".join(_item(entry, indent) for entry in inner)
        else:
            lines += f"{indent}{key}: {_leaf(inner)}\n"
    return lines


def _item(entry: Any, indent: str) -> str:
    if isinstance(entry, dict):
        block = _yaml(entry, indent + "    ")
        return f"{indent}  - {block.lstrip()}"
    return f"{indent}  - {_leaf(entry)}\n"


def _leaf(value: object) -> str:
    plain = isinstance(value, str) and value and all(c.isalnum() or c in "-_/." for c in value)
    if plain and not str(value).replace(".", "").isdigit():
        return str(value)
    return json.dumps(value, ensure_ascii=False)

"""What a guest and its user are given: the CD, and SSH's configuration."""

import os
import pwd
import struct

import pytest
import yaml

SECTOR = 2048


def read_iso(path):
    """Return the label and the files of an ISO 9660 image by their Rock Ridge names."""
    data = path.read_bytes()
    head = data[16 * SECTOR : 17 * SECTOR]
    assert head[:6] == b"\1CD001"
    found = {}

    def walk(start, size, prefix):
        position, end = start * SECTOR, start * SECTOR + size
        while position < end:
            length = data[position]
            if length == 0:
                position = (position // SECTOR + 1) * SECTOR
                continue
            record = data[position : position + length]
            position += length
            extent, count = struct.unpack("<I", record[2:6])[0], struct.unpack("<I", record[10:14])[0]
            name_size = record[32]
            if record[33 : 33 + name_size] in (b"\0", b"\1"):
                continue
            name = rock_ridge_name(record[33 + name_size + (name_size + 1) % 2 :])
            if record[25] & 2:
                walk(extent, count, f"{prefix}{name}/")
            else:
                found[prefix + name] = data[extent * SECTOR :][:count]

    root = head[156:190]
    walk(struct.unpack("<I", root[2:6])[0], struct.unpack("<I", root[10:14])[0], "")
    return head[40:72].decode().strip(" \0"), found


def rock_ridge_name(use):
    name = b""
    while len(use) >= 4 and use[2]:
        if use[:2] == b"NM":
            name += use[5 : use[2]]
        use = use[use[2] :]
    return name.decode()


def variables(data):
    pairs = (line.partition("=") for line in data.decode().splitlines() if "=" in line)
    return {key: value for key, _, value in pairs}


@pytest.fixture
def disc(lima):
    """Start an instance with these changes, and return its CD's label and files."""

    def make(**changes):
        folder = lima.create(**changes)
        with lima.started():
            return read_iso(folder / "cidata.iso")

    return make


def test_the_cd_is_what_cloud_init_looks_for(lima, disc):
    label, files = disc()

    assert label == "cidata"
    assert {"meta-data", "user-data", "network-config", "lima.env", "param.env", "boot.sh"} < set(files)
    meta = yaml.safe_load(files["meta-data"])
    assert sorted(meta) == ["instance-id", "local-hostname"]
    assert meta["local-hostname"] == "lima-a"
    assert meta["instance-id"].startswith("iid-")
    assert files["meta-data"].startswith(b"instance-id: iid-")


def test_the_cd_names_a_user_with_lima_s_key_and_no_other(lima, disc):
    (lima.root / ".ssh").mkdir()
    (lima.root / ".ssh" / "id_ed25519.pub").write_text("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA other\n")
    user = {"name": "somebody", "uid": 1234, "home": "/home/some", "shell": "/bin/sh", "comment": 'a "b"'}

    _, files = disc(user=user)

    found = yaml.safe_load(files["user-data"])
    assert files["user-data"].startswith(b"#cloud-config\n")
    (account,) = found["users"]
    assert account == {
        "name": "somebody",
        "uid": "1234",
        "gecos": 'a "b"',
        "homedir": "/home/some",
        "shell": "/bin/sh",
        "sudo": "ALL=(ALL) NOPASSWD:ALL",
        "lock_passwd": True,
        "ssh-authorized-keys": [(lima.home / "_config" / "user.pub").read_text().strip()],
    }
    assert found["growpart"] == {"mode": "auto", "devices": ["/"]}
    (script,) = found["write_files"]
    assert script["path"] == "/var/lib/cloud/scripts/per-boot/00-lima.boot.sh"
    assert (script["owner"], script["permissions"]) == ("root:root", "0755")
    assert "/mnt/lima-cidata" in script["content"]


def test_the_cd_has_the_facts_for_the_scripts_of_a_boot(lima, disc):
    _, files = disc()

    found = variables(files["lima.env"])
    me = pwd.getpwuid(os.getuid())
    known = {
        "IID": yaml.safe_load(files["meta-data"])["instance-id"],
        "NAME": "a",
        "USER": me.pw_name,
        "UID": str(me.pw_uid),
        "HOME": f"/home/{me.pw_name}.guest",
        "SHELL": "/bin/bash",
        "MOUNTS": "0",
        "DISKS": "0",
        "PLAIN": "1",
        "VMTYPE": "qemu",
        "SLIRP_GATEWAY": "192.168.5.2",
        "SLIRP_DNS": "192.168.5.3",
        "SLIRP_IP_ADDRESS": "192.168.5.15",
        "PASSWORDLESS_SUDO": "1",
        "CONTAINERD_USER": "",
        "NO_CLOUD_INIT": "",
    }
    assert {key: found.get(f"LIMA_CIDATA_{key}") for key in known} == known


def test_the_cd_has_the_network_of_the_guest(lima, disc):
    _, files = disc(hostResolver={"enabled": True})

    found = yaml.safe_load(files["network-config"])
    card = found["ethernets"]["eth0"]
    assert found["version"] == 2
    assert card["match"]["macaddress"].startswith("52:55:55:")
    assert (card["dhcp4"], card["set-name"]) == (True, "eth0")
    assert card["nameservers"] == {"addresses": ["192.168.5.3"]}


def test_the_cd_has_scripts_parameters_and_environment(lima, disc):
    steps = [
        {"script": "#!/bin/sh\necho {{.Name}} {{.Param.what}}\n"},
        {"mode": "user", "script": "#!/bin/sh\n"},
    ]

    _, files = disc(provision=steps, param={"what": "ever"}, env={"A": "b c"})

    assert files["provision.system/00000000"] == b"#!/bin/sh\necho a ever\n"
    assert files["provision.user/00000001"] == b"#!/bin/sh\n"
    assert variables(files["param.env"]) == {"PARAM_what": "ever"}
    assert b"\nA=b c\n" in files["etc_environment"]


def test_proxies_of_the_host_are_the_guest_s_unless_it_wants_none(lima):
    folder = lima.create(propagateProxyEnv=False)
    lima.env["https_proxy"] = "http://proxy.invalid:3128"

    with lima.started():
        _, files = read_iso(folder / "cidata.iso")

    assert b"proxy.invalid" not in files["etc_environment"]


def test_the_configuration_for_ssh_names_key_port_and_a_master(lima):
    folder = lima.create(user={"name": "somebody"})

    with lima.started():
        text = (folder / "ssh.config").read_text()

    lines = [line.strip() for line in text.splitlines() if not line.startswith("#")]
    assert lines[0] == "Host lima-a"
    assert {
        f'IdentityFile "{lima.home}/_config/user"',
        "StrictHostKeyChecking no",
        "UserKnownHostsFile /dev/null",
        "BatchMode yes",
        "IdentitiesOnly yes",
        "User somebody",
        "ControlMaster auto",
        f'ControlPath "{folder}/ssh.sock"',
        "ControlPersist yes",
        "Hostname 127.0.0.1",
        f"Port {lima.port}",
    } <= set(lines)
    assert (folder / "ssh.config").stat().st_mode & 0o777 == 0o600

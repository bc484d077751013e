"""``create``: files, defaults, and what is refused."""

import hashlib
import json
import os
import stat
import subprocess

import pytest

HEX = "0" * 64
NO_GUEST_AGENT = (
    "guest agent binary could not be found for Linux-x86_64: file does not exist "
    "(Hint: try installing `lima-additional-guestagents` package)"
)


def test_an_instance_is_a_folder_with_its_file_its_disk_and_no_process(lima):
    path = lima.write()

    done = lima.run("create", "--name", "a", str(path)).expect()

    folder = lima.home / "a"
    assert sorted(entry.name for entry in folder.iterdir()) == [
        "cloud-config.yaml",
        "disk",
        "lima-version",
        "lima.yaml",
    ]
    assert (folder / "lima.yaml").read_bytes() == path.read_bytes()
    assert (folder / "lima-version").read_text() in lima.run("--version").out
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert done.out == ""
    assert done.said("info") == [
        "Terminal is not available, proceeding without opening an editor",
        "Attempting to download the image",
        f"Downloaded the image from `{lima.image}`",
        "Resize instance a's disk from 2MiB to 4MiB",
        "Run `limactl start a` to start the instance.",
    ]


def test_the_first_instance_makes_lima_s_key_and_no_later_one_changes_it(lima):
    lima.create("a")
    key = lima.home / "_config" / "user"
    first = key.read_bytes()

    lima.create("b")

    assert key.read_bytes() == first
    assert (lima.home / "_config" / "user.pub").read_text().startswith("ssh-ed25519 ")
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(lima.home.stat().st_mode) == 0o700


def test_a_new_instance_is_listed_with_all_that_its_file_left_out(lima):
    lima.create("a")

    found = lima.listed("a")

    config = found.pop("config")
    version = found.pop("limaVersion")
    assert version in lima.run("--version").out
    assert found == {
        "name": "a",
        "hostname": "lima-a",
        "status": "Stopped",
        "dir": f"{lima.home}/a",
        "vmType": "qemu",
        "arch": "x86_64",
        "cpus": 1,
        "memory": 64 << 20,
        "disk": 4 << 20,
        "sshLocalPort": lima.port,
        "sshConfigFile": f"{lima.home}/a/ssh.config",
        "sshAddress": "127.0.0.1",
        "protected": False,
        "HostOS": "linux",
        "HostArch": "x86_64",
        "LimaHome": str(lima.home),
        "IdentityFile": f"{lima.home}/_config/user",
    }
    user = config.pop("user")
    assert (user["uid"], user["shell"], user["passwordlessSudo"]) == (os.getuid(), "/bin/bash", True)
    assert user["home"] == f"/home/{user['name']}.guest"
    # Addresses of archives of the real one's own version.
    config["containerd"].pop("archives", None)
    assert config == {
        "vmType": "qemu",
        "os": "Linux",
        "arch": "x86_64",
        "images": [{"location": str(lima.image), "arch": "x86_64"}],
        "cpus": 1,
        "memory": "64MiB",
        "disk": "4MiB",
        "mountInotify": False,
        "ssh": {
            "localPort": lima.port,
            "loadDotSSHPubKeys": False,
            "forwardAgent": False,
            "forwardX11": False,
            "forwardX11Trusted": False,
        },
        "firmware": {"legacyBIOS": True},
        "audio": {"device": "", "interface": ""},
        "video": {"display": "none"},
        "upgradePackages": False,
        "containerd": {"system": False, "user": False},
        "guestInstallPrefix": "/usr/local",
        "hostResolver": {"enabled": False, "ipv6": False},
        "propagateProxyEnv": True,
        "caCerts": {"removeDefaults": False},
        "plain": True,
        "timezone": "",
        "nestedVirtualization": False,
        "tpm": False,
    }


def test_a_plain_instance_has_no_mounts_no_forwards_and_no_containers(lima):
    lima.create(
        mounts=[{"location": "/tmp"}],
        portForwards=[{"ignore": True, "proto": "any", "guestPortRange": [1, 65535]}],
        containerd={"user": True, "system": True},
        timezone="Europe/Paris",
    )

    config = lima.listed()["config"]

    assert "mounts" not in config
    assert "portForwards" not in config
    assert (config["containerd"]["user"], config["containerd"]["system"]) == (False, False)
    assert config["timezone"] == ""


def test_an_instance_can_come_from_stdin_in_yaml(lima):
    text = "# a comment\nplain: true\nimages:\n- location: " + str(lima.image) + "\n"

    lima.run("create", "--name", "a", "-", data=text.encode()).expect()

    assert (lima.home / "a" / "lima.yaml").read_text() == text
    found = lima.listed()
    assert found["disk"] == 100 << 30
    assert "sshLocalPort" not in found
    lima.run("create", "-", data=text.encode()).expect(
        "must pass instance name with --name when reading template from stdin"
    )


def test_without_a_name_it_is_that_of_the_file(lima):
    lima.run("create", str(lima.write().rename(lima.root / "some.yaml"))).expect()

    assert lima.run("list", "--quiet").out == "some\n"


def test_kernel_and_initrd_are_copied_with_the_kernel_s_arguments(lima):
    for name in ("k", "i"):
        (lima.root / name).write_bytes(name.encode())
    image = {"location": str(lima.image)}
    image["kernel"] = {"location": str(lima.root / "k"), "cmdline": "root=/dev/vda rw"}
    image["initrd"] = {"location": str(lima.root / "i")}

    folder = lima.create(images=[image])

    assert (folder / "kernel").read_bytes() == b"k"
    assert (folder / "initrd").read_bytes() == b"i"
    assert (folder / "kernel.cmdline").read_text() == "root=/dev/vda rw"


def test_the_disk_is_a_copy_that_has_the_wanted_size(lima):
    folder = lima.create(disk="1GiB")

    told = subprocess.run(
        ["qemu-img", "info", "--output=json", folder / "disk"], capture_output=True, check=True
    ).stdout
    assert json.loads(told)["virtual-size"] == 1 << 30
    assert json.loads(told)["format"] == "qcow2"
    assert "backing-filename" not in json.loads(told)


def test_an_image_is_checked_against_its_digest(lima):
    digest = "sha256:" + hashlib.sha256(lima.image.read_bytes()).hexdigest()
    lima.create("a", images=[{"location": str(lima.image), "digest": digest}])
    wrong = [{"location": str(lima.image), "digest": f"sha256:{HEX}"}]

    done = lima.run("create", "--name", "b", str(lima.write(images=wrong)))

    done.expect(f"failed to download `{lima.image}`: expected digest `sha256:{HEX}`, got `{digest}`")


def test_an_instance_whose_image_can_not_be_had_stays_without_a_disk(lima):
    path = lima.write(images=[{"location": "/nowhere"}])

    lima.run("create", "--name", "a", str(path)).expect(
        "failed to download `/nowhere`: failed to open source /nowhere: "
        "open /nowhere: no such file or directory"
    )

    assert not (lima.home / "a" / "disk").exists()
    assert lima.listed()["status"] == "Stopped"
    lima.run("create", "--name", "a", str(path)).expect("instance `a` already exists")


def test_an_image_that_reads_another_file_is_refused(lima):
    overlay = lima.root / "overlay.qcow2"
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", lima.image, "-F", "qcow2", overlay]
    subprocess.run(command, check=True)

    done = lima.run("create", "--name", "a", str(lima.write(images=[{"location": str(overlay)}])))

    assert done.status == 1
    assert "must not have a backing file" in done.said("fatal")[0]


def test_a_disk_that_is_too_small_is_refused(lima):
    done = lima.run("create", "--name", "a", str(lima.write(disk="1MiB")))

    done.expect("disk shrinking is not supported")


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("images", [], "field `images` must be set"),
        ("disk", "x", "field `disk` has an invalid value: invalid size: 'x'"),
        ("memory", "-", "field `memory` has an invalid value: invalid size: '-'"),
        ("ssh", {"localPort": 22}, "field `ssh.localPort` must not be 22"),
        ("ssh", {"localPort": 99999}, "field `ssh.localPort` must be < 65536"),
        ("vmType", "foo", "vmType `foo` is not a registered driver"),
        ("user", {"shell": "sh"}, "field `user.shell` must be an absolute path, got `sh`"),
        ("probes", [{"script": "x"}], "field `probe[0].script` must start with a '#!' line"),
        ("provision", [{"script": ""}], "field `provision[0].script` must not be empty"),
        (
            "param",
            {"a": "b"},
            "field `param` key `a` is not used in any provision, probe, copyToHost, or portForward",
        ),
        (
            "plain",
            False,
            NO_GUEST_AGENT,
        ),
    ],
)
def test_a_configuration_that_can_not_work_is_refused(lima, field, value, error):
    lima.run("create", "--name", "a", str(lima.write(**{field: value}))).expect(error)


def test_a_newer_lima_can_be_demanded(lima):
    (error,) = lima.run("create", str(lima.write(minimumLimaVersion="9.0.0"))).said("fatal")

    assert error.startswith("template requires Lima version `9.0.0`; this is only `2.")


def test_all_problems_are_told_at_once(lima):
    done = lima.run("create", "--name", "a", str(lima.write(images=[], ssh={"localPort": 22})))

    done.expect("field `images` must be set\nfield `ssh.localPort` must not be 22")
    assert not (lima.home / "a").exists()


@pytest.mark.parametrize("text", ["cpus: [\n", "[1]", "null", '{"cpus": "many"}', '{"images": 3}'])
def test_a_file_that_can_not_be_read_is_named(lima, text):
    path = lima.root / "bad.yaml"
    path.write_text(text)

    (error,) = lima.run("create", "--name", "a", str(path)).said("fatal")

    assert error.startswith(f"failed to unmarshal YAML ({path}): ")
    assert not (lima.home / "a").exists()


def test_a_file_that_is_not_there_is_named(lima):
    path = lima.root / "none.yaml"

    lima.run("create", "--name", "a", str(path)).expect(f"open {path}: no such file or directory")


def test_an_unknown_field_is_only_warned_of(lima):
    done = lima.run("create", "--name", "a", str(lima.write(cpu=3))).expect()

    assert "Non-strict YAML detected; please check for typos" in done.said("warning")


@pytest.mark.parametrize("name", ["a b", "_a", ".a", "a..b", "-a", "a/b", "ä", "a\nb", "x" * 77])
def test_a_name_that_is_none_is_refused(lima, name):
    done = lima.run("create", f"--name={name}", str(lima.write()))

    (error,) = done.said("fatal")
    assert error.startswith("instance name ")
    assert " is not a valid identifier: identifier " in error
    assert not lima.home.exists()


def test_a_name_that_looks_like_a_file_is_refused(lima):
    done = lima.run("create", "--name=a.yml", str(lima.write()))

    done.expect("instance name `a.yml` must not end with .yml or .yaml suffix")


def test_a_home_that_is_too_long_for_sockets_is_refused(lima):
    home = lima.root / ("x" * 60)

    done = lima.run("create", "--name", "abcdefgh", str(lima.write()), env={"LIMA_HOME": str(home)})

    longest = f"{home}/abcdefgh/ssh.sock.1234567890123456"
    done.expect(
        f"instance name `abcdefgh` too long: `{longest}` must be less than "
        f"UNIX_PATH_MAX=108 characters, but is {len(longest)}"
    )


def test_the_user_s_default_and_override_reach_every_instance_of_the_home(lima):
    lima.create("a")
    config = lima.home / "_config"
    (config / "override.yaml").write_text("cpus: 3\nssh:\n  localPort: 12345\n")
    (config / "default.yaml").write_text("cpus: 2\nenv:\n  A: b\n")

    found = lima.listed()

    assert (found["cpus"], found["sshLocalPort"]) == (3, 12345)
    assert found["config"]["env"] == {"A": "b"}


def test_a_user_s_override_that_is_no_yaml_breaks_every_instance(lima):
    lima.create("a")
    (lima.home / "_config" / "override.yaml").write_text("cpus: [")

    done = lima.run("list", "--json")

    assert json.loads(done.out)["status"] == ""
    assert json.loads(done.out)["errors"] == []
    assert lima.run("start", "a").status == 1


def test_a_folder_without_a_file_is_a_broken_instance_that_delete_leaves(lima):
    lima.create("a")
    folder = lima.home / "b"
    folder.mkdir()
    missing = f"open {folder}/lima.yaml: no such file or directory"

    done = lima.run("list", "--json").expect()

    found = json.loads(done.out.splitlines()[1])
    assert (found["name"], found["status"], found["dir"]) == ("b", "Broken", str(folder))
    assert "instance `b` has errors" in done.said("warning")
    (error,) = lima.run("delete", "--force", "b").said("fatal")
    assert error.startswith(f"instance `b` directory `{folder}` exists but its `lima.yaml` could not be read")
    assert folder.exists()
    lima.run("clone", "b", "c").expect("instance `b` not found")
    lima.run("stop", "b").expect(missing)


def test_an_instance_whose_file_is_broken_can_still_be_deleted(lima):
    folder = lima.create("a")
    (folder / "lima.yaml").write_text("cpus: [")

    lima.run("delete", "a").said("fatal")[0].startswith("failed to delete instance `a`: expected status")
    lima.run("delete", "--force", "a").expect()

    assert not folder.exists()

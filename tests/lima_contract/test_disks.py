"""Disks beside an instance's own, templates on templates, and copies: what the import of an image needs."""

import json
import subprocess

import pytest


def file_format(path):
    told = subprocess.run(["qemu-img", "info", "--output=json", path], capture_output=True, check=True).stdout
    return json.loads(told)["format"]


def test_a_disk_is_a_qcow2_file_also_where_raw_was_asked_for(lima):
    for name, words in (("a", []), ("b", ["--format", "raw"])):
        lima.run("disk", "create", name, "--size", "1MiB", *words).expect()

    folder = lima.home / "_disks"
    assert [file_format(folder / name / "datadisk") for name in ("a", "b")] == ["qcow2", "qcow2"]
    listed = [json.loads(line) for line in lima.run("disk", "list", "--json").out.splitlines()]
    assert listed[0] == {
        "name": "a",
        "size": 1 << 20,
        "format": "qcow2",
        "dir": f"{folder}/a",
        "instance": "",
        "instanceDir": "",
        "mountPoint": "/mnt/lima-a",
    }


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["create", "b"], 'required flag(s) "size" not set'),
        (["create", "b", "--size", "q"], "invalid size: 'q'"),
        (
            ["create", "b", "--size", "1M", "--format", "vmdk"],
            "disk format `vmdk` not supported, use `qcow2` or `raw` instead",
        ),
    ],
)
def test_a_disk_that_can_not_be_made_is_refused(lima, words, error):
    lima.run("disk", *words).expect(error)


def test_a_disk_of_that_name_is_not_made_again(lima):
    lima.run("disk", "create", "a", "--size", "1M").expect()

    done = lima.run("disk", "create", "a", "--size", "1M")

    done.expect(f"disk `a` already exists (`{lima.home}/_disks/a`)")


def test_an_instance_has_its_disk_alone_also_after_an_end_before_its_guest_was_there(lima, ending):
    lima.run("disk", "create", "d", "--size", "1MiB").expect()
    disk = lima.home / "_disks" / "d"
    for name in ("a", "b"):
        lima.create(name, additionalDisks=[{"name": "d", "format": False}])
    assert lima.listed()["additionalDisks"] == [{"name": "d", "format": False}]

    with lima.started("a") as process:
        words = disk_arguments(lima)
        assert f"file={disk}/datadisk,if=virtio,discard=on" in words
        assert json.loads(lima.run("disk", "ls", "--json").out)["instance"] == "a"
        assert str((disk / "in_use_by").readlink()) == f"{lima.home}/a"
        lima.run("disk", "delete", "d").expect("cannot delete disk `d` in use by instance `a`")
        other = lima.begin("start", "--foreground", "b")
        other.communicate(timeout=60)
        assert other.returncode == 1
        assert ("error", "could not attach disk `d`: in use by instance `a`") in lima.log("b")
        ending(lima)
        process.wait(30)

    assert (disk / "in_use_by").is_symlink()
    lima.run("delete", "a", "b").expect()
    assert not (disk / "in_use_by").is_symlink()
    lima.run("disk", "delete", "d").expect()
    assert not disk.exists()


def disk_arguments(lima):
    return [word for process in lima.processes() for word in process.cmdline() if "datadisk" in word]


def test_a_disk_that_an_instance_names_is_not_deleted_without_force(lima):
    lima.run("disk", "create", "d", "--size", "1MiB").expect()
    lima.create("a", additionalDisks=["d"])

    done = lima.run("disk", "delete", "d").expect()

    assert done.said("warning")[0].startswith("Skipping deleting disk `d`, disk is referenced by ")
    assert (lima.home / "_disks" / "d").exists()
    lima.run("disk", "delete", "--force", "d").expect()
    assert lima.run("disk", "delete", "d").expect().said("warning") == ["Ignoring non-existent disk `d`"]


def test_a_killed_instance_keeps_its_disk_until_it_is_stopped_by_force(lima):
    lima.run("disk", "create", "d", "--size", "1MiB").expect()
    lima.create(additionalDisks=["d"])
    lock = lima.home / "_disks" / "d" / "in_use_by"

    with lima.started() as process:
        process.kill()
        process.wait()
        assert lock.is_symlink()
        lima.run("stop", "--force", "a").expect()

    assert not lock.is_symlink()
    lock.symlink_to(lima.home / "a")
    with lima.started():
        assert lima.listed()["status"] == "Running"


def test_a_template_can_be_based_on_others(lima):
    (lima.root / "base.yaml").write_text(
        "cpus: 3\nimages:\n- location: /nowhere\nenv: {A: b}\nuser: {name: bob, shell: /bin/zsh}\n"
    )
    document = lima.document(base="./base.yaml", user={"shell": "/bin/sh"})
    del document["cpus"]
    (lima.root / "child.yaml").write_text(json.dumps(document))

    lima.run("create", "--name", "a", str(lima.root / "child.yaml")).expect()

    config = lima.listed()["config"]
    assert "base" not in config
    assert [image["location"] for image in config["images"]] == [str(lima.image), "/nowhere"]
    assert (config["cpus"], config["env"], config["memory"]) == (3, {"A": "b"}, "64MiB")
    assert (config["user"]["name"], config["user"]["shell"]) == ("bob", "/bin/sh")


def test_a_template_s_base_that_does_not_exist_is_told(lima):
    done = lima.run("create", "--name", "a", str(lima.write(base="template:nothing")))

    done.expect("template `nothing.yaml` not found")


def test_a_copy_needs_a_running_instance(lima):
    lima.create()

    lima.run("copy", "zz:/x", "y").expect(
        "instance `zz` does not exist, run `limactl create zz` to create a new instance"
    )
    lima.run("copy", "a:/x", "y").expect(
        "instance `a` is stopped, run `limactl start a` to start the instance"
    )

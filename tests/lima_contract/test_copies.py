"""``clone``, ``rename``, ``protect`` and ``unprotect``."""

import subprocess


def test_a_clone_has_the_files_of_its_source_stale_logs_too_but_no_traces_of_processes(lima):
    folder = lima.create("a")
    for name in ("ha.stdout.log", "ha.stderr.log", "extra"):
        (folder / name).write_text(name)
    for name in ("x.pid", "x.sock", "x.tmp"):
        (folder / name).touch()
    lima.run("protect", "a").expect()

    done = lima.run("clone", "a", "b").expect()

    copy = lima.home / "b"
    assert done.err == ""
    left_out = {"x.pid", "x.sock", "x.tmp", "protected"}
    assert {f.name for f in copy.iterdir()} == {f.name for f in folder.iterdir()} - left_out
    assert (copy / "ha.stdout.log").read_text() == "ha.stdout.log"
    assert (copy / "disk").read_bytes() == (folder / "disk").read_bytes()
    assert (copy / "disk").stat().st_ino != (folder / "disk").stat().st_ino
    assert lima.listed("b")["protected"] is False
    assert lima.listed("b")["sshLocalPort"] == lima.port


def test_a_clone_that_can_not_be_made_is_refused(lima):
    lima.create("a")
    lima.create("b")

    lima.run("clone", "a", "a").expect("new instance name `a` must be different from `a`")
    lima.run("clone", "a", "b").expect("instance `b` already exists")
    (error,) = lima.run("clone", "a", "b d").said("fatal")
    assert error.startswith("instance name `b d` is not a valid identifier")
    assert lima.run("list", "--quiet").out == "a\nb\n"


def test_a_folder_that_is_furnished_by_hand_is_an_instance(lima):
    source = lima.create("a")
    folder = lima.home / "b"
    folder.mkdir()
    overlay = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", source / "disk", "-F", "qcow2"]
    subprocess.run([*overlay, folder / "disk"], check=True)
    assert lima.run("list", "--json", "b").said("warning")[0].startswith("The directory ")

    (folder / "lima.yaml").write_bytes((source / "lima.yaml").read_bytes())

    found = lima.listed("b")
    assert (found["status"], found["hostname"], found["limaVersion"]) == ("Stopped", "lima-b", "")
    with lima.started("b"):
        assert lima.listed("b")["status"] == "Running"


def test_an_instance_can_have_another_name(lima):
    lima.create("a")

    lima.run("rename", "a", "b").expect()

    assert lima.run("list", "--quiet").out == "b\n"


def test_a_protected_instance_is_not_deleted(lima):
    folder = lima.create("a")

    assert lima.run("protect", "a").expect().said("info") == ["Protected `a`"]
    again = lima.run("protect", "a").expect()
    for words in (("delete", "a"), ("delete", "--force", "a")):
        lima.run(*words).expect(
            "failed to delete instance `a`: instance is protected to prohibit accidental removal "
            "(Hint: use `limactl unprotect`)"
        )

    assert again.said("warning") == ["Instance `a` is already protected. Skipping."]
    assert lima.listed()["protected"] is True
    assert folder.exists()
    assert lima.run("unprotect", "a").expect().said("info") == ["Unprotected `a`"]
    assert lima.run("unprotect", "a").said("warning") == ["Instance `a` isn't protected. Skipping."]
    lima.run("delete", "a").expect()
    assert not folder.exists()

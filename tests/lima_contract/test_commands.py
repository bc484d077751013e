"""The command line itself, and commands that only look."""

import json
import os
import re
import shutil
import subprocess

import pytest


def test_the_version_is_a_line_with_three_numbers(lima):
    done = lima.run("--version")

    assert re.fullmatch(r"limactl version 2\.\d+\.\d+\S*\n", done.out)
    assert (done.status, done.err) == (0, "")


def test_root_is_refused_whatever_is_asked(limactl):
    program = [str(limactl / "bin" / "limactl"), "--version"]
    if os.geteuid() != 0:
        program = ["unshare", "--user", "--map-root-user", *program]

    done = subprocess.run(program, capture_output=True, check=False)

    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == b"limactl: must not run as the root user\n"


def test_a_home_without_instances_lists_nothing_and_says_so(lima):
    for words in (("list",), ("list", "--json"), ("ls",)):
        done = lima.run(*words).expect()
        assert done.out == ""
        assert done.said("warning") == ["No instance found. Run `limactl create` to create an instance."]
    assert not lima.home.exists()


def test_an_unknown_instance_is_an_error_of_list(lima):
    done = lima.run("list", "--json", "nobody").expect("unmatched instances")

    assert done.out == ""
    assert done.said("warning") == ["No instance matching nobody found."]


def test_instances_are_lines_of_json_in_the_order_of_their_names(lima):
    lima.create("b")
    lima.create("a")

    done = lima.run("list", "--json").expect()

    assert [json.loads(line)["name"] for line in done.out.splitlines()] == ["a", "b"]
    assert lima.run("list", "--quiet").out == "a\nb\n"
    assert json.loads(lima.run("list", "--json", "b").out)["name"] == "b"


def test_one_unknown_name_does_not_hide_the_known_ones(lima):
    lima.create("a")

    done = lima.run("list", "--quiet", "nobody", "a").expect("unmatched instances")

    assert done.out == "a\n"


def test_the_table_is_for_people(lima):
    lima.create("a")

    lines = lima.run("list").expect().out.splitlines()

    assert lines[0].split() == [*("NAME", "STATUS", "SSH", "VMTYPE", "ARCH", "CPUS", "MEMORY", "DISK", "DIR")]
    fields = f"a Stopped 127.0.0.1:{lima.port} qemu x86_64 1 64MiB 4MiB {lima.home}/a"
    assert lines[1].split() == fields.replace(str(lima.root), "~").split()
    assert [line.index("DIR" if n == 0 else "~") for n, line in enumerate(lines)] == [
        lines[0].index("DIR")
    ] * 2


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["nonsense"], 'unknown command "nonsense" for "limactl"'),
        (["list", "--nonsense"], "unknown flag: --nonsense"),
        (["delete", "-x", "a"], "unknown shorthand flag: 'x' in -x"),
        (["list", "--json=maybe"], None),
        (["create", "--name"], "flag needs an argument: --name"),
        (["start", "--timeout=2x", "a"], None),
        (["--log-level=loud", "list"], 'not a valid logrus Level: "loud"'),
        (["--log-format=prose", "list"], "unsupported log-format: `prose`"),
        (["--yes", "list"], "cannot use both --tty and --yes flags at the same time"),
        (["list", "--json", "--quiet"], "option --quiet can only be used with '--format table'"),
        (["shell"], "requires instance name as first argument"),
    ],
)
def test_a_wrong_command_line_is_refused(lima, words, error):
    done = lima.run(*words)

    assert done.status == 1
    assert len(done.said("fatal")) == 1
    if error is not None:
        done.expect(error)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["clone", "a"], "accepts 2 arg(s), received 1"),
        (["delete"], "requires at least 1 arg(s), only received 0"),
        (["stop", "a", "b"], "accepts at most 1 arg(s), received 2"),
        (["protect"], "requires at least 1 arg(s), only received 0"),
        (["info", "x"], 'unknown command "x" for "limactl info"'),
    ],
)
def test_a_wrong_number_of_words_is_refused_with_the_usage(lima, words, problem):
    (error,) = lima.run(*words).said("fatal")

    first, second, *_ = error.split("\n")
    assert first == f"`limactl {words[0]}` {problem}."
    assert second == f"See `limactl {words[0]} --help`."
    assert "\n\nUsage:  limactl " in error


def test_log_lines_are_json_on_request(lima):
    done = lima.run("--log-format=json", "list")

    line = json.loads(done.err)
    assert line["level"] == "warning"
    assert sorted(line) == ["level", "msg", "time"]


def test_instances_that_do_not_exist_are_told_by_each_command(lima):
    missing = f"open {lima.home}/zz/lima.yaml: no such file or directory"

    lima.run("stop", "zz").expect(missing)
    lima.run("stop", "--force", "zz").expect(missing)
    lima.run("shell", "zz", "true").expect(
        "instance `zz` does not exist, run `limactl create zz` to create a new instance"
    )
    lima.run("clone", "zz", "b").expect("instance `zz` not found")
    lima.run("protect", "zz").expect(f"failed to inspect instance `zz`: {missing}")
    lima.run("unprotect", "zz").expect(f"failed to inspect instance `zz`: {missing}")
    done = lima.run("delete", "--force", "zz").expect()
    assert done.said("warning") == ["Ignoring non-existent instance `zz`"]


def test_start_of_an_unknown_name_tries_to_create_it_from_the_default_template(lima):
    done = lima.run("start", "zz").expect("template `default.yaml` not found")

    assert done.said("info") == ["Creating an instance `zz` from template:default (Not from template:zz)"]
    assert done.said("warning")[0].startswith("This form is deprecated.")


def test_templates_come_from_the_user_and_from_beside_the_program(lima):
    shared = lima.prefix / "share" / "lima" / "templates"
    shared.mkdir(parents=True)
    shutil.copy(lima.write(), shared / "default.yaml")
    shutil.copy(lima.write(cpus=2), shared / "other.yaml")
    own = lima.home / "_templates"
    own.mkdir(parents=True)
    shutil.copy(lima.write(memory="65MiB"), own / "default.yaml")

    lima.run("create").expect()
    lima.run("create", "--name", "b", "template:other").expect()

    assert (lima.listed("default")["memory"], lima.listed("b")["cpus"]) == (65 << 20, 2)
    info = json.loads(lima.run("info").expect().out)
    assert {template["name"] for template in info["templates"]} == {"default", "other"}
    assert (info["limaHome"], info["hostOS"]) == (str(lima.home), "linux")
    assert "qemu" in info["vmTypes"]
    assert info["identityFile"] == f"{lima.home}/_config/user"
    assert info["version"] in lima.run("--version").out


def test_the_same_home_is_meant_by_a_symbolic_link_to_it(lima):
    lima.create("a")
    link = lima.root / "link"
    link.symlink_to(lima.home)

    done = lima.run("list", "--json", env={"LIMA_HOME": str(link)})

    assert json.loads(done.out)["dir"] == f"{lima.home}/a"


def test_without_lima_home_it_is_a_folder_of_the_user(lima):
    lima.create("a")
    lima.home.rename(lima.root / ".lima")

    done = lima.run("list", "--json", env={"LIMA_HOME": ""})

    assert json.loads(done.out)["dir"] == f"{lima.root}/.lima/a"

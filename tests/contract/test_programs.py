"""Where programs are looked for: never where a guest can put one."""

import os

import pytest

from claude_vm.drivers.errors import ToolMissingError
from claude_vm.drivers.programs import BuildEnvironment, guarding, search, user_environment


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A folder with a project and a folder of programs; nothing else is looked into."""
    monkeypatch.setattr("claude_vm.drivers.programs.MORE", ())
    monkeypatch.chdir(tmp_path)
    for folder in ("project/bin", "project/.venv/bin", "usr/bin", "shared"):
        (tmp_path / folder).mkdir(parents=True)
        put(tmp_path / folder / "tool")
    return tmp_path


def put(program):
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    return program


def found(host, path, *, shared=("project",)):
    """Where `tool` is found, beneath the host's folder, and the remarks."""
    programs = search(path.replace("@", str(host)), lambda: guarding([host / name for name in shared]))
    tool = programs.find("tool")
    return None if tool is None else tool.removeprefix(f"{host}/"), programs


@pytest.mark.parametrize("path", [".", "", "usr/bin", "./usr/bin", "::", "../x", "~/bin", ".:usr/bin:"])
def test_an_entry_that_is_empty_or_relative_is_left_out_and_told(host, path):
    tool, programs = found(host, path)
    assert tool is None
    assert programs.folders == ()
    assert len(programs.remarks) == len(set(path.split(":")))
    assert all("is skipped" in remark for remark in programs.remarks)


def test_the_first_folder_that_counts_has_the_program(host):
    put(host / "shared" / "other")
    tool, programs = found(host, ".:@/project/bin:@/usr/bin:@/shared")
    assert tool == "usr/bin/tool"
    assert programs.path == f"{host}/usr/bin:{host}/shared"
    assert programs.environment()["PATH"] == user_environment(programs)["PATH"] == programs.path


@pytest.mark.parametrize(
    "entry",
    [
        "@/project",
        "@/project/bin",
        "@/project/.venv/bin/",
        "@/usr/../project/bin",
        "@//project/./bin",
        "@/linked",
        "@/chain",
        "@/through",
        "@/out",
        "@/same",
    ],
)
def test_a_folder_that_a_guest_can_decide_about_is_left_out_whatever_leads_there(host, entry):
    (host / "linked").symlink_to("project/.venv/bin")
    (host / "chain").symlink_to(host / "linked")
    # Links in the project that lead out of it: a guest may lay them anew.
    (host / "project" / "elsewhere").symlink_to(host / "usr")
    (host / "through").symlink_to("project/elsewhere/bin")
    (host / "project" / "to-usr").symlink_to("../usr/bin")
    (host / "out").symlink_to("project/to-usr")
    (host / "same").symlink_to("project")
    tool, programs = found(host, f"{entry}:@/shared")
    assert tool == "shared/tool"
    (remark,) = programs.remarks
    assert f"guests can write to {host}/project" in remark


def test_a_program_that_leads_into_a_project_is_not_run(host):
    (host / "usr" / "bin" / "tool").unlink()
    (host / "usr" / "bin" / "tool").symlink_to(host / "project" / "bin" / "tool")
    tool, programs = found(host, "@/usr/bin:@/shared")
    assert tool == "shared/tool"
    assert programs.remarks == [f"{host}/usr/bin/tool is not run: guests can write to {host}/project"]


@pytest.mark.parametrize(
    ("line", "where"),
    [
        ("#!@/project/bin/node\n", "@/project"),
        ("#! \t@/project/.venv/bin/python -I", "@/project"),
        ("#!@/usr/bin/linked -x\n", "@/project"),
        ("#!@/usr/bin/wrapper\n", "@/project"),
        ("#!node\n", "'node'"),
        ("#!./node_modules/.bin/node\n", "'./node_modules/.bin/node'"),
    ],
)
def test_a_script_whose_interpreter_is_a_guests_is_not_run(host, line, where):
    (host / "usr/bin/linked").symlink_to(host / "project/bin/python")
    put(host / "usr/bin/wrapper").write_text(f"#!{host}/project/bin/sh\n")
    (host / "usr/bin/tool").write_text(line.replace("@", str(host)))
    tool, programs = found(host, "@/usr/bin:@/shared")
    assert tool == "shared/tool"
    told = where.replace("@", str(host))
    assert programs.remarks == [
        f"{host}/usr/bin/tool is not run: guests can write to its interpreter ({told})"
    ]
    assert programs.guest_at(f"{host}/usr/bin/tool")
    assert not programs.guest_at(f"{host}/shared/tool")


@pytest.mark.parametrize(
    "content", [b"", b"#!", b"#!\n", b"\x7fELF", b"#!/usr/bin/env node\n", b"#!" + b"x" * 9]
)
def test_a_program_that_names_no_interpreter_of_a_guests_is_run(host, content):
    (host / "usr/bin/tool").write_bytes(content)
    assert found(host, "@/usr/bin:@/shared")[0] == ("shared/tool" if b"xxx" in content else "usr/bin/tool")


def test_temporary_files_are_made_where_no_guest_can_exchange_them(host):
    programs = found(host, "@/usr/bin")[1]
    (host / "link").symlink_to("project/.venv")
    for folder in ("project", "project/tmp", "link", "project/../shared/../project"):
        assert BuildEnvironment(programs, {"TMPDIR": f"{host}/{folder}", "x_proxy": "p"}).environ == {
            "x_proxy": "p"
        }
    for relative in ("", "tmp", "."):
        assert BuildEnvironment(programs, {"TMPDIR": relative}).environ == {}
    kept = {"TMPDIR": f"{host}/shared"}
    assert BuildEnvironment(programs, kept).environ == kept


def test_a_program_that_a_link_leads_to_elsewhere_is_run_by_its_own_name(host):
    (host / "usr" / "bin" / "other").symlink_to(host / "shared" / "tool")
    assert (
        search(f"{host}/usr/bin", lambda: guarding([host / "project"])).find("other")
        == f"{host}/usr/bin/other"
    )


def test_a_folder_stays_what_it_was_when_its_link_is_laid_anew(host):
    (host / "current").symlink_to("usr/bin")
    programs = search(f"{host}/current", lambda: guarding([host / "project"]))
    (host / "current").unlink()
    (host / "current").symlink_to("project/bin")
    assert programs.find("tool") == f"{host}/usr/bin/tool"


def test_a_folder_that_a_guest_gets_later_is_looked_into_no_more(host):
    shared = []
    programs = search(f"{host}/usr/bin:{host}/shared", lambda: guarding(shared))
    assert programs.find("tool") == f"{host}/usr/bin/tool"
    shared.append(host / "usr")
    assert programs.find("tool") == f"{host}/shared/tool"
    assert programs.path == f"{host}/shared"
    settled = programs.settled()
    shared.append(host / "shared")
    assert programs.find("tool") is None
    assert settled.find("tool") == f"{host}/shared/tool"


def test_a_project_is_known_under_any_of_its_names(host):
    (host / "alias").symlink_to("project")
    assert found(host, "@/project/bin", shared=["alias"])[0] is None
    assert found(host, "@/alias/bin", shared=["project"])[0] is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root can change everything")
def test_what_our_user_cannot_change_a_guest_has_not_changed(host):
    tool, programs = found(host, "/usr/bin:@/usr/bin", shared=["/"])
    assert tool is None
    assert programs.folders == (os.path.realpath("/usr/bin"),)
    assert programs.find("env") == f"{os.path.realpath('/usr/bin')}/env"


@pytest.mark.parametrize("kind", ["directory", "no program", "dangling", "circle"])
def test_what_cannot_be_run_is_passed_over(host, kind):
    tool = host / "usr" / "bin" / "tool"
    tool.unlink()
    match kind:
        case "directory":
            tool.mkdir()
        case "no program":
            tool.write_text("")
        case "dangling":
            tool.symlink_to("gone")
        case _:
            tool.symlink_to("tool")
    assert found(host, "@/usr/bin:@/shared")[0] == "shared/tool"


def test_a_circle_of_links_is_no_folder(host):
    (host / "a").symlink_to("b")
    (host / "b").symlink_to("a")
    assert found(host, "@/a:@/shared")[0] == "shared/tool"


def test_what_is_missing_is_told_with_what_was_left_out(host):
    programs = search(f".:{host}/project/bin", lambda: guarding([host / "project"]))
    with pytest.raises(ToolMissingError) as caught:
        programs.need("tool", "install it")
    told = str(caught.value)
    assert told.startswith("tool is not installed: it is in no folder of PATH ('.' in PATH is skipped")
    assert f"guests can write to {host}/project" in told
    assert "\n" not in told
    assert caught.value.hint == "install it"


def test_what_is_told_of_a_long_path_is_short():
    programs = search(":".join(f"relative/{n}" for n in range(1000)))
    assert len(programs.absence("tool")) < 500

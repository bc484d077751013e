"""Guests that prepare the next session: with real VMs, what they gain by it."""

import subprocess

import pytest

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]


def git(folder, *words):
    identity = ("-c", "user.name=n", "-c", "user.email=e@example.invalid")
    subprocess.run(["git", *identity, "-C", folder, *words], check=True, capture_output=True)


@pytest.fixture
def lent(claude_vm):
    """Give a folder inside of the project a template of its own, and take it away at the end."""
    made = []

    def lend(path):
        claude_vm.lend_template(path)
        made.append(path)

    yield lend
    for path in made:
        (path / ".git").exists() or git(path, "init", "-q")
        claude_vm.run("--accept-growth", "clean", "--yes", cwd=path)


def refused(done, code):
    assert done.returncode == 125, done.stderr.decode()
    assert f"[{code}]" in done.stderr.decode().splitlines()[0]
    return done.stderr.decode()


def test_a_guest_can_not_have_its_next_session_mount_more(claude_vm, folder, lent):
    """Neither by a bare repository that stops being one, nor by taking away or breaking its own."""
    git(folder, "init", "-q", "--bare", "area/.git")
    git(claude_vm.project, "commit", "-q", "--allow-empty", "-m", "x")
    git(claude_vm.project, "push", "-q", folder / "area/.git", "HEAD:main")
    git(folder / "area/.git", "worktree", "add", "-q", "../main", "main")
    main = folder / "area/main"
    lent(main)
    done = claude_vm.run("shell", "sudo git config -f ../.git/config core.bare false && echo done", cwd=main)
    assert done.stdout == b"done\n", done.stderr.decode()
    said = refused(claude_vm.run("shell", "ls ..", cwd=main), "project-grew")
    assert f"{folder}/area/.git, {main}" in said
    assert f"now belong to {folder}/area" in said
    done = claude_vm.run("shell", "git config -f ../.git/config core.bare true; rm .git", cwd=main)
    refused(done, "project-grew")
    git(folder / "area/.git", "config", "core.bare", "true")
    assert claude_vm.run("shell", "mv ../.git/HEAD ../.git/HEAD.x", cwd=main).returncode == 0
    said = refused(claude_vm.run("shell", "true", cwd=main), "broken-repository")
    assert "HEAD is missing" in said
    git_head = folder / "area/.git/HEAD.x"
    git_head.rename(folder / "area/.git/HEAD")


def test_links_that_a_guest_leaves_lead_the_next_session_nowhere(claude_vm, folder, tmp_path):
    (folder / "data").mkdir()
    (folder / ".env").write_text("A=1\n")
    (tmp_path / "id").write_text("KEY=secret\n")
    flags = ("--mount", f"{folder}/data:/data", "--env-file", ".env")
    plant = f"echo $A; rmdir data; ln -s {tmp_path} data; ln -sf {tmp_path}/id .env"
    assert claude_vm.run(*flags, "shell", plant, cwd=folder).stdout == b"1\n"
    said = refused(claude_vm.run(*flags[:2], "shell", "touch /data/x", cwd=folder), "link-leaves")
    assert str(tmp_path) in said
    assert str(folder / "data") in said
    said = refused(claude_vm.run(*flags[2:], "shell", "env", cwd=folder), "link-leaves")
    assert str(tmp_path / "id") in said
    assert [path.name for path in tmp_path.iterdir()] == ["id"]


def test_a_parent_is_read_only_around_a_writable_mount_and_never_the_other_way_round(claude_vm, tmp_path):
    outer = tmp_path / "outer"
    (outer / "inner").mkdir(parents=True)
    (outer / "file").write_text("as it was")
    script = (
        f"sudo touch {outer}/inner/made; sudo umount -l {outer}/inner; echo x | sudo tee {outer}/file;"
        f" sudo touch {outer}/inner/x; sudo mount -o remount,rw {outer}; sudo touch {outer}/inner/y; true"
    )
    done = claude_vm.run("--mount", f"{outer}:ro", "--mount", f"{outer}/inner", "shell", script)
    assert done.returncode == 0, done.stderr.decode()
    assert (outer / "file").read_text() == "as it was"
    assert [path.name for path in (outer / "inner").iterdir()] == ["made"]
    for flags in (
        ("--mount", f"{outer}", "--mount", f"{outer}/inner:ro"),
        ("--mount", f"{outer}", "--mount", f"{outer}/inner:/elsewhere:ro"),
        ("--mount", f"{claude_vm.project}:/v:ro"),
    ):
        assert "can't be read-only" in refused(claude_vm.run(*flags, "shell", "true"), "bad-mount")

"""Finding the project: as git does it, and without believing what a guest could have written."""

import os
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_vm.context.errors import BrokenRepositoryError, ProjectError
from claude_vm.context.project import check_apart, check_project, find_project, template_name


def test_without_git_the_current_directory_is_the_project(home):
    project = find_project(home)
    assert (project.root, project.cwd, project.template_root) == (home, home, home)
    assert project.main_repository is None


def test_repository_is_found_from_a_sub_directory(repository, git):
    project = find_project(repository / "sub")
    assert project.root == Path(git(repository / "sub", "rev-parse", "--show-toplevel")) == repository
    assert project.cwd == repository / "sub"
    assert project.main_repository == project.template_root == repository
    assert project.git_common_dir == repository / ".git"
    assert not project.bare


def test_symlinked_directory_is_the_one_it_leads_to(repository, home):
    (home / "link").symlink_to(repository / "sub")
    project = find_project(home / "link")
    assert (project.root, project.cwd) == (repository, repository / "sub")


def test_directory_that_is_gone_is_an_error_with_a_hint(home):
    with pytest.raises(ProjectError, match="no longer exists") as caught:
        find_project(home / "nothing")
    assert caught.value.hint
    assert caught.value.code == "bad-project"


def test_file_is_no_project(repository):
    with pytest.raises(ProjectError):
        find_project(repository / "sub" / "file")


def test_linked_worktree_has_its_own_root_and_shares_repository_and_template(repository, home, git):
    git(repository, "worktree", "add", "-q", str(home / "tree"))
    project = find_project(home / "tree" / "sub")
    assert project.root == home / "tree"
    assert project.cwd == home / "tree" / "sub"
    assert project.main_repository == project.template_root == repository
    assert project.git_common_dir == repository / ".git"
    assert template_name(project.template_root) == template_name(find_project(repository).template_root)


def test_worktree_with_relative_links_is_found(repository, home, git):
    git(repository, "worktree", "add", "-q", str(home / "tree"))
    (home / "tree" / ".git").write_text("gitdir: ../code/.git/worktrees/tree\n")
    (repository / ".git/worktrees/tree/gitdir").write_text("../../../../tree/.git\n")
    assert find_project(home / "tree").main_repository == repository


def test_worktree_of_a_bare_repository_adds_only_the_repository_itself(repository, home, git):
    git(home, "clone", "-q", "--bare", str(repository), "store/code.git")
    git(home / "store/code.git", "worktree", "add", "-q", str(home / "tree"), "main")
    project = find_project(home / "tree")
    assert project.root == home / "tree"
    assert project.main_repository == project.git_common_dir == home / "store/code.git"
    assert project.bare


def test_bare_repository_named_dot_git_is_not_its_parent(repository, home, git):
    git(home, "clone", "-q", "--bare", str(repository), "store/.git")
    git(home / "store/.git", "worktree", "add", "-q", str(home / "tree"), "main")
    assert find_project(home / "tree").main_repository == home / "store/.git"


def test_inside_a_bare_repository_it_is_the_project(repository, home, git):
    git(home, "clone", "-q", "--bare", str(repository), "code.git")
    for folder in (home / "code.git", home / "code.git" / "refs"):
        project = find_project(folder)
        assert project.root == project.main_repository == home / "code.git"
        assert project.cwd == folder
        assert project.bare


def test_directory_beside_a_bare_repository_is_not_widened_to_its_parent(repository, home, git):
    git(home, "clone", "-q", "--bare", str(repository), "store/.git")
    (home / "store/notes").mkdir()
    assert find_project(home / "store/notes").root == home / "store/notes"
    assert find_project(home / "store/.git").root == home / "store/.git"
    git(home, "clone", "-q", "--bare", str(repository), "pointed/.bare")
    (home / "pointed/.git").write_text("gitdir: ./.bare\n")
    (home / "pointed/notes").mkdir()
    assert find_project(home / "pointed/notes").root == home / "pointed/notes"


def test_inside_the_data_of_a_work_tree_the_work_tree_is_the_project(repository):
    project = find_project(repository / ".git" / "refs")
    assert (project.root, project.cwd) == (repository, repository / ".git" / "refs")


def test_submodule_is_a_project_of_its_own_with_its_data(repository, home, git):
    git(home, "init", "-q", "outer")
    git(home / "outer", "submodule", "--quiet", "add", str(repository), "inner")
    project = find_project(home / "outer/inner/sub")
    assert project.root == project.main_repository == home / "outer/inner"
    assert project.git_common_dir == home / "outer/.git/modules/inner"


def test_worktree_of_a_submodule_finds_the_submodule(repository, home, git):
    git(home, "init", "-q", "outer")
    git(home / "outer", "submodule", "--quiet", "add", str(repository), "inner")
    git(home / "outer/inner", "worktree", "add", "-q", str(home / "tree"))
    project = find_project(home / "tree")
    assert project.main_repository == home / "outer/inner"
    assert project.git_common_dir == home / "outer/.git/modules/inner"


@pytest.fixture
def guest_folder(home):
    """A project that a guest could write."""
    folder = home / "guest"
    folder.mkdir()
    return folder


def assert_alone(project, folder):
    assert project.root == folder
    assert project.main_repository is None
    assert project.git_common_dir is None


def test_git_file_can_not_pull_in_a_repository_that_does_not_know_it(guest_folder, repository, home, git):
    git(repository, "worktree", "add", "-q", str(home / "tree"))
    for target in (".git", ".git/worktrees/tree"):
        (guest_folder / ".git").write_text(f"gitdir: {repository / target}\n")
        assert_alone(find_project(guest_folder), guest_folder)


def test_git_symlink_can_not_pull_in_a_repository(guest_folder, repository):
    (guest_folder / ".git").symlink_to(repository / ".git")
    assert_alone(find_project(guest_folder), guest_folder)


def test_forged_metadata_behind_a_symlink_can_not_pull_in_a_repository(guest_folder, repository, home, git):
    git(repository, "worktree", "add", "-q", str(home / "tree"))
    git(home, "init", "-q", str(guest_folder / "main"))
    metadata = guest_folder / "main/.git/worktrees"
    metadata.mkdir()
    (metadata / "x").symlink_to(repository / ".git/worktrees/tree")
    work = guest_folder / "work"
    work.mkdir()
    (work / ".git").write_text(f"gitdir: {metadata / 'x'}\n")
    assert_alone(find_project(work), work)


def test_commondir_file_is_not_believed(repository, home, git):
    git(home, "init", "-q", "secret")
    git(repository, "worktree", "add", "-q", str(home / "tree"))
    (repository / ".git/worktrees/tree/commondir").write_text(f"{home / 'secret/.git'}\n")
    assert find_project(home / "tree").git_common_dir == repository / ".git"


def test_core_worktree_can_not_move_the_project(repository, home, git):
    git(repository, "config", "core.worktree", str(home))
    assert find_project(repository).root == repository


@pytest.fixture
def inner(repository, git):
    """A repository in another one, which is what is found when the inner one is climbed past."""
    folder = repository / "sub/inner"
    git(repository, "init", "-q", str(folder))
    assert find_project(folder).root == folder
    return folder


def fifo_head(data):
    (data / "HEAD").unlink()
    os.mkfifo(data / "HEAD")


@pytest.mark.parametrize(
    ("breaking", "says"),
    [
        (lambda data: (data / "HEAD").rename(data / "HEAD.x"), "HEAD"),
        (lambda data: (data / "HEAD").write_text("ref: nowhere"), "HEAD"),
        (lambda data: (data / "HEAD").chmod(0), "HEAD"),
        (fifo_head, "HEAD"),
        (lambda data: (data / "objects").rename(data / "x"), "objects"),
        (lambda data: (data / "refs").rename(data / "x"), "refs"),
        (lambda data: shutil.rmtree(data) or data.mkdir(), "objects"),
        (lambda data: data.chmod(0), "objects"),
        (lambda data: data.rename(data.with_name("x")) and os.mkfifo(data), "neither"),
        *(
            (lambda data, text=text: shutil.rmtree(data) or data.write_bytes(text), says)
            for text, says in (
                (b"", "names no folder"),
                (b"\xff\0", "names no folder"),
                (b"gitdir: ", "names no folder"),
                (b"gitdir: \0", "names no folder"),
                (b"x" * 2_000_000, "names no folder"),
                (b"gitdir: /nothing", "/nothing"),
                (b"gitdir: ..", "is not a repository"),
                (b"gitdir: ../../.git/worktrees/x", "No such file"),
                (b"gitdir: .git", "Not a directory|is not a repository"),
            )
        ),
    ],
)
def test_a_broken_repository_is_an_error_and_never_climbed_past(inner, breaking, says):
    breaking(inner / ".git")
    (inner / "deep").mkdir()
    for folder in (inner, inner / "deep"):
        with pytest.raises(BrokenRepositoryError, match=says) as caught:
            find_project(folder)
        assert caught.value.code == "broken-repository"
        assert str(inner / ".git") in caught.value.message
        assert "git worktree repair" in caught.value.hint
    if not (inner / ".git").is_symlink():
        (inner / ".git").chmod(0o700)


@pytest.mark.parametrize("breaking", ["HEAD", "objects", "worktrees/tree"])
def test_a_worktree_whose_repository_is_broken_is_an_error_too(repository, home, git, breaking):
    git(repository, "worktree", "add", "-q", str(home / "tree"))
    (repository / ".git" / breaking).rename(home / "moved")
    with pytest.raises(BrokenRepositoryError):
        find_project(home / "tree")


def test_a_link_in_place_of_the_repository_is_not_followed_and_not_climbed_past(inner, repository):
    for target in (repository / ".git", "nowhere", ".git"):
        shutil.rmtree(inner / ".git") if (inner / ".git").is_dir() else (inner / ".git").unlink()
        (inner / ".git").symlink_to(target)
        assert_alone(find_project(inner), inner)
        (inner / ".git").unlink()
        (inner / ".git").mkdir()


def test_nothing_of_a_repository_runs(repository, home, git):
    trap = home / "ran"
    hook = home / "hook"
    hook.write_text(f"#!/bin/sh\ntouch {trap}\n")
    hook.chmod(0o755)
    git(repository, "config", "core.fsmonitor", str(hook))
    git(repository, "config", "core.hooksPath", str(home))
    git(repository, "config", "alias.rev-parse", f"!{hook}")
    check_project(find_project(repository), home=home, any_directory=False)
    assert not trap.exists()


def test_hostile_names_are_found_as_they_are(home, git):
    for name in (
        "a b",
        "quote'\"",
        "new\nline",
        "$(x)",
        "-rf",
        "é",
        "x" * 200,
        "colon:comma,",
        os.fsdecode(b"\xff"),
    ):
        folder = home / name
        folder.mkdir()
        git(folder, "init", "-q", ".")
        assert find_project(folder).root == folder


def test_home_root_and_their_parents_are_refused(home):
    for folder, says in (
        (home, "is your home"),
        (home.parent, "contains your home"),
        (Path("/"), "is the root"),
    ):
        with pytest.raises(ProjectError, match=says) as caught:
            check_project(find_project(folder), home=home, any_directory=False)
        assert "--any-directory" in caught.value.hint
        check_project(find_project(folder), home=home, any_directory=True)


def test_home_is_refused_through_a_symlink_too(home, tmp_path):
    (tmp_path / "link").symlink_to(home)
    with pytest.raises(ProjectError):
        check_project(find_project(home), home=tmp_path / "link", any_directory=False)


def test_worktree_of_a_repository_in_the_home_is_refused(home, git):
    git(home, "init", "-q", ".")
    git(home, "commit", "-q", "--allow-empty", "-m", "x")
    git(home, "worktree", "add", "-q", str(home / "tree"))
    with pytest.raises(ProjectError, match="the repository of"):
        check_project(find_project(home / "tree"), home=home, any_directory=False)


def test_directory_in_the_home_is_fine(repository, home):
    check_project(find_project(repository), home=home, any_directory=False)


@pytest.mark.parametrize("data", [".", "data", ".."])
def test_what_a_guest_may_write_has_no_part_of_our_own_data(tmp_path, data):
    project = tmp_path / "project"
    project.mkdir()
    with pytest.raises(ProjectError, match="own data") as caught:
        check_apart([project], [tmp_path / "elsewhere", project / data])
    assert "CLAUDE_VM_HOME" in caught.value.hint


def test_data_beside_the_project_are_fine(tmp_path):
    check_apart([tmp_path / "project"], [tmp_path / "project-and-more/data", tmp_path / "other"])


LEGAL = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*")


names = st.one_of(
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), max_size=300),
    st.binary(max_size=255).map(lambda name: os.fsdecode(name.replace(b"/", b"").replace(b"\0", b""))),
)


@given(names)
def test_every_basename_gives_a_legal_short_template_name(name):
    found = template_name(Path("/p") / name)
    assert LEGAL.fullmatch(found)
    assert len(found) <= 40


@pytest.mark.parametrize(
    ("name", "middle"),
    [
        ("app", "app"),
        ("My App_v2.0", "My-App-v2-0"),
        ("Crème", "Creme"),
        ("日本", "project"),
        ("...", "project"),
        ("-rf", "rf"),
        (os.fsdecode(b"\xff"), "project"),
        ("x" * 200, "x" * 19),
        ("abcdefghijklmnopqr-stu", "abcdefghijklmnopqr"),
    ],
)
def test_template_name_shows_the_basename_where_it_can(name, middle):
    found = template_name(Path("/p") / name)
    assert re.fullmatch(rf"claude-tpl_{middle}_[0-9a-f]{{8}}", found)


def test_equal_basenames_in_different_places_have_different_templates():
    assert template_name(Path("/a/app")) != template_name(Path("/b/app"))


def test_file_system_boundary_ends_the_search(monkeypatch, repository):
    plain = Path.stat

    class Elsewhere:
        st_dev = -1

    monkeypatch.setattr(
        Path,
        "stat",
        lambda self, **more: Elsewhere() if self == repository and not more else plain(self, **more),
    )
    assert find_project(repository / "sub").root == repository / "sub"


def test_what_can_not_be_looked_at_is_passed_over_above_but_not_where_git_would_be(monkeypatch, repository):
    plain = Path.stat
    refused = [repository / "sub"]

    def refuse(self, **more):
        if self in refused:
            raise PermissionError(13, "no", str(self))
        return plain(self, **more)

    (repository / "sub/x").mkdir()
    monkeypatch.setattr(Path, "stat", refuse)
    monkeypatch.setattr(Path, "lstat", lambda self: refuse(self, follow_symlinks=False))
    assert find_project(repository / "sub/x").root == repository
    refused[0] = repository / "sub/.git"
    with pytest.raises(BrokenRepositoryError):
        find_project(repository / "sub/x")


def test_home_that_can_not_be_resolved_is_compared_as_it_is(tmp_path, repository):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    check_project(find_project(repository), home=loop, any_directory=False)


def test_separate_git_directory_is_believed_only_if_it_names_the_folder(home, git):
    git(home, "init", "-q", "--separate-git-dir", str(home / "data"), "work")
    assert_alone(find_project(home / "work"), home / "work")
    git(home / "work", "config", "core.worktree", str(home / "gone"))
    assert_alone(find_project(home / "work"), home / "work")
    git(home / "work", "config", "core.worktree", "../work")
    assert find_project(home / "work").git_common_dir == home / "data"

"""A project never becomes more than it was, whatever guests do to git's files between sessions."""

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from claude_vm.context.errors import BrokenRepositoryError, LinkError
from claude_vm.context.folders import Folder, Known, growth, remembered
from claude_vm.context.opening import real_path
from claude_vm.context.project import find_project, project_folders


class User:
    """Somebody who starts sessions, and what is remembered for them."""

    def __init__(self):
        self.folders = {}

    @property
    def known(self):
        return Known(self.folders.values())

    def find(self, path):
        known = self.known
        return find_project(path, lambda named: real_path(named, known.guard))

    def keep(self, folders):
        for folder in folders:
            before = self.folders.get(folder.path)
            writable = folder.writable or (before is not None and before.writable)
            self.folders[folder.path] = msgspec.structs.replace(folder, writable=writable)

    def session(self, cwd, *mounts, accept=False):
        """Return what a session mounts writable for its project, or None where it is refused."""
        project = self.find(cwd)
        grown = growth(project, self.known)
        if grown is not None and not accept:
            return None
        if grown is not None:
            self.keep(grown.allowed())
        reach = project_folders(project)
        identified = []
        for path in (*reach, *mounts):
            status = path.stat()
            identified.append((path, (status.st_dev, status.st_ino)))
        self.keep([*remembered(project, identified, self.known, self.find)])
        assert growth(self.find(cwd), self.known) is None
        assert [*remembered(project, identified, self.known, self.find)] == []
        return reach


@pytest.fixture
def user():
    return User()


@pytest.fixture
def area(home, git, repository):
    """A bare repository named .git, with worktrees beside it, one of them used."""
    git(home, "clone", "-q", "--bare", str(repository), "area/.git")
    for name in ("main", "feature"):
        git(
            home / "area/.git", "worktree", "add", "-q", "-b", f"of-{name}", str(home / "area" / name), "main"
        )
    (home / "area/notes").mkdir()
    return home / "area"


def test_a_repository_that_stops_being_bare_adds_nothing(user, area, git):
    assert user.session(area / "main") == (area / ".git", area / "main")
    git(area, "config", "-f", str(area / ".git/config"), "core.bare", "false")
    for cwd in (area / "main", area / "main/sub", area / "feature", area / "notes", area):
        assert user.session(cwd) is None, cwd
    grown = growth(user.find(area / "main"), user.known)
    assert grown.text.startswith(f"{area}/main belonged to the project {area}/.git, {area}/main")
    assert f"now belong to {area}: " in grown.text
    assert user.session(area / "main", accept=True) == (area,)
    assert user.session(area / "main/sub") == (area,)


def test_a_repository_that_is_taken_away_does_not_show_what_is_around_it(user, repository, git):
    inner = repository / "sub/inner"
    git(repository, "init", "-q", str(inner))
    (inner / "deep").mkdir()
    assert user.session(inner) == (inner,)
    shutil.rmtree(inner / ".git")
    assert user.session(inner) is None
    assert user.session(inner / "deep") is None
    assert user.session(repository) == (repository,)
    assert user.session(inner) is None


def test_a_repository_made_above_through_a_wider_mount_takes_nothing_in(user, home, git):
    (home / "wide/plain/x").mkdir(parents=True)
    (home / "else").mkdir()
    assert user.session(home / "wide/plain") == (home / "wide/plain",)
    assert user.session(home / "else", home / "wide") == (home / "else",)
    git(home / "wide", "init", "-q")
    assert user.session(home / "wide/plain") is None
    assert user.session(home / "wide/plain/x") is None


def test_less_is_taken_at_once_and_more_than_that_is_asked_for_again(user, repository, home, git):
    git(repository, "worktree", "add", "-q", str(home / "tree"))
    assert user.session(home / "tree") == (repository, home / "tree")
    text = (home / "tree/.git").read_text()
    (home / "tree/.git").unlink()
    assert user.session(home / "tree") == (home / "tree",)
    (home / "tree/.git").write_text(text)
    assert user.session(home / "tree") is None
    assert user.session(home / "tree", accept=True) == (repository, home / "tree")
    assert user.session(home / "tree") == (repository, home / "tree")


def test_what_users_do_every_day_is_never_asked_for(user, repository, home, git):
    assert user.session(repository / "sub") == (repository,)
    assert user.session(repository) == (repository,)
    git(repository, "worktree", "add", "-q", str(home / "tree"))
    assert user.session(home / "tree") == (repository, home / "tree")
    git(repository, "worktree", "add", "-q", str(repository / "trees/a"))
    assert user.session(repository / "trees/a") == (repository,)
    git(repository, "init", "-q", str(repository / "vendor"))
    assert user.session(repository / "vendor") == (repository / "vendor",)
    git(repository, "submodule", "--quiet", "add", str(repository), "module")
    module = (repository / "module", repository / ".git/modules/module")
    assert user.session(repository / "module") == module
    git(repository / "module", "worktree", "add", "-q", str(home / "of-module"))
    assert set(user.session(home / "of-module")) == {home / "of-module", *module}
    (home / "plain/x").mkdir(parents=True)
    assert user.session(home / "plain") == (home / "plain",)
    git(home / "plain", "init", "-q")
    assert user.session(home / "plain/x") == (home / "plain",)
    assert user.session(repository, repository / "sub", home) == (repository,)
    assert user.session(repository / "sub") == (repository,)


def test_a_folder_that_was_only_a_mount_is_still_of_the_project_around_it(user, repository, home):
    (home / "else").mkdir()
    user.session(home / "else", repository / "sub")
    assert user.session(repository / "sub") == (repository,)


def test_a_first_use_where_guests_could_write_brings_nothing_from_elsewhere(user, repository, home, git):
    """Both ends are planted: a .git file where no session was, and its answer in another repository."""
    user.session(repository)
    (home / "wide/new").mkdir(parents=True)
    (home / "else").mkdir()
    user.session(home / "else", home / "wide")
    data = repository / ".git/worktrees/x"
    data.mkdir(parents=True)
    (home / "wide/new/.git").write_text(f"gitdir: {data}\n")
    (data / "gitdir").write_text(f"{home}/wide/new/.git\n")
    assert find_project(home / "wide/new").main_repository == repository
    assert user.session(home / "wide/new") is None


def test_a_worktrees_metadata_can_not_be_led_to_another_guests_repository(user, repository, home, git):
    git(repository, "worktree", "add", "-q", str(home / "tree"))
    user.session(repository)
    git(home, "init", "-q", "other")
    user.session(home / "other")
    (repository / ".git/worktrees").rename(repository / ".git/moved")
    (home / "other/.git/worktrees").mkdir()
    (repository / ".git/moved/tree").rename(home / "other/.git/worktrees/tree")
    (repository / ".git/worktrees").symlink_to(home / "other/.git/worktrees")
    with pytest.raises(LinkError):
        user.session(home / "tree")


def test_another_projects_template_is_not_used_without_a_word(user, home, git):
    """Nothing more would be mounted, but the VM's user is that of the template."""
    work = home / "work"
    for name in ("a", "b"):
        git(home, "init", "-q", str(work / name))
    git(home, "init", "-q", str(work))
    user.session(work / "b")
    user.session(work)
    data = work / "b/.git/worktrees/a"
    data.mkdir(parents=True)
    shutil.rmtree(work / "a/.git")
    (work / "a/.git").write_text(f"gitdir: {data}\n")
    (data / "gitdir").write_text(f"{work}/a/.git\n")
    found = find_project(work / "a")
    assert found.template_root == work / "b"
    assert user.session(work / "a") is None
    assert f"belong to {work}/a, {work}/b (template of {work}/b): " in growth(found, user.known).text


def test_a_repository_and_its_worktree_are_new_where_guests_could_write(user, repository, home, git):
    user.session(repository)
    git(home, "clone", "-q", "--bare", str(repository), str(repository / "area/.git"))
    git(repository / "area/.git", "worktree", "add", "-q", str(repository / "area/main"), "main")
    assert set(user.session(repository / "area/main")) == {repository / "area/main", repository / "area/.git"}
    git(repository / "area", "config", "-f", str(repository / "area/.git/config"), "core.bare", "false")
    assert user.session(repository / "area/main") is None


def test_a_moved_mount_has_no_claim_on_the_folders_around_it(user, home):
    status = home.stat()
    folder = Folder(
        path=home / "p", reach=(home / "p",), template_root=home, identity=(status.st_dev, status.st_ino)
    )
    assert Known([folder]).nearest(home) is None


# Everything of git that is looked at, made by hand: git itself is slow, and a guest needs no git.


def make_data(data, *, bare):
    for name in ("objects", "refs"):
        (data / name).mkdir(parents=True)
    (data / "HEAD").write_text("ref: refs/heads/main\n")
    (data / "config").write_text(f"[core]\n\tbare = {str(bare).lower()}\n")


def make_worktree(tree, data, name):
    tree.mkdir(parents=True)
    (data / "worktrees" / name).mkdir(parents=True)
    (tree / ".git").write_text(f"gitdir: {data}/worktrees/{name}\n")
    (data / "worktrees" / name / "gitdir").write_text(f"{tree}/.git\n")


FOLDERS = (
    *("area", "area/main", "area/main/sub", "area/feature", "area/notes", "work", "work/sub", "work/inner"),
    *("work/inner/deep", "tree", "plain", "plain/x", "module", "module/part", "secret"),
)
DATA = ("area/.git", "work/.git", "work/inner/.git", "module/.git", "module/.git/modules/part", "secret/.git")


class GuestsAndSessions(RuleBasedStateMachine):
    """Sessions in many places, mounts of whole trees, and guests that write whatever they were ever given."""

    @initialize()
    def make(self):
        self.place = Path(tempfile.mkdtemp()).resolve()
        make_data(self.place / "area/.git", bare=True)
        for name in ("main", "feature"):
            make_worktree(self.place / "area" / name, self.place / "area/.git", name)
        make_data(self.place / "work/.git", bare=False)
        make_data(self.place / "work/inner/.git", bare=False)
        make_worktree(self.place / "tree", self.place / "work/.git", "tree")
        make_data(self.place / "module/.git", bare=False)
        part = self.place / "module/.git/modules/part"
        make_data(part, bare=False)
        (part / "config").write_text("[core]\n\tworktree = ../../../part\n")
        make_data(self.place / "secret/.git", bare=False)
        for name in FOLDERS:
            (self.place / name).mkdir(parents=True, exist_ok=True)
        (self.place / "module/part/.git").write_text("gitdir: ../.git/modules/part\n")
        self.user = User()
        self.untouched = {name: project_folders(find_project(self.place / name)) for name in FOLDERS}
        self.last = {}
        self.given = {}

    @rule(
        name=st.sampled_from(FOLDERS[:-1]), mount=st.sampled_from([None, None, "area", "plain", "work/sub"])
    )
    def session(self, name, mount):
        cwd = self.place / name
        mounts = [self.place / mount] if mount and (self.place / mount).is_dir() else []
        try:
            reach = self.user.session(cwd, *mounts)
        except (BrokenRepositoryError, LinkError):
            return
        if reach is None:
            return
        # A guest that had this folder before may have shrunk what it is now, and no more.
        allowed = [self.untouched[name], *(was for at, was in self.given.items() if cwd.is_relative_to(at))]
        assert any(covers(was, reach) for was in allowed), (name, reach)
        assert name not in self.last or covers(self.last[name], reach), (name, reach)
        self.last[name] = reach
        for path in (*reach, *mounts):
            before = self.given.get(path, ())
            self.given[path] = (*before, *reach, *mounts) if path in mounts else (*before, *reach)

    def writable(self, path):
        """Tell whether a guest has it: links are followed in the guest, where there is nothing else."""
        try:
            real = path.parent.resolve() / path.name
        except (OSError, RuntimeError):
            return False
        return any(real.is_relative_to(folder) for folder in self.given)

    @rule(data=st.sampled_from(DATA), bare=st.booleans())
    def say_bare(self, data, bare):
        file = self.place / data / "config"
        if self.writable(file) and file.is_file():
            file.write_text(f"[core]\n\tbare = {str(bare).lower()}\n")

    @rule(data=st.sampled_from(DATA), tree=st.sampled_from(FOLDERS))
    def say_work_tree(self, data, tree):
        file = self.place / data / "config"
        if self.writable(file) and file.is_file():
            file.write_text(f"[core]\n\tworktree = {self.place / tree}\n")

    @rule(
        data=st.sampled_from(DATA),
        name=st.sampled_from(["HEAD", "objects", "refs", "config", "worktrees", "worktrees/main"]),
    )
    def hide_or_show(self, data, name):
        path = self.place / data / name
        if not self.writable(path.parent):
            return
        hidden = path.with_name(f"{path.name}.x")
        with suppress(OSError):
            path.rename(hidden) if path.exists() else hidden.rename(path)

    @rule(folder=st.sampled_from(FOLDERS))
    def remove_repository(self, folder):
        path = self.place / folder / ".git"
        if self.writable(path.parent):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)

    @rule(folder=st.sampled_from(FOLDERS), bare=st.booleans())
    def plant_repository(self, folder, bare):
        path = self.place / folder / ".git"
        if (
            self.writable(path.parent)
            and path.parent.is_dir()
            and not path.is_symlink()
            and not path.exists()
        ):
            make_data(path, bare=bare)

    @rule(folder=st.sampled_from(FOLDERS), data=st.sampled_from(DATA), worktree=st.booleans())
    def plant_pointer(self, folder, data, worktree):
        path = self.place / folder / ".git"
        if not self.writable(path.parent) or not path.parent.is_dir() or path.is_dir() or path.is_symlink():
            return
        target = self.place / data
        if worktree:
            target = target / "worktrees" / "planted"
            with suppress(OSError, RuntimeError):
                if self.writable(target.resolve()):
                    target.mkdir(parents=True, exist_ok=True)
                    (target / "gitdir").write_text(f"{path}\n")
        path.write_text(f"gitdir: {target}\n")

    @rule(data=st.sampled_from(DATA), other=st.sampled_from(DATA))
    def plant_link(self, data, other):
        path = self.place / data / "worktrees"
        if (
            self.writable(path.parent)
            and path.parent.is_dir()
            and not path.exists()
            and not path.is_symlink()
        ):
            path.symlink_to(self.place / other / "worktrees")

    def teardown(self):
        if hasattr(self, "place"):
            shutil.rmtree(self.place, ignore_errors=True)


def covers(reach, folders):
    return all(any(folder.is_relative_to(other) for other in reach) for folder in folders)


TestGuestsAndSessions = GuestsAndSessions.TestCase
TestGuestsAndSessions.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


def test_a_folder_that_the_user_moves_brings_no_more_than_it_was(user, home, git):
    for name in ("work", "work/inner"):
        git(home, "init", "-q", name)
    inner, moved = home / "work/inner", home / "work/libs/inner"
    (inner / "sub").mkdir()
    assert user.session(inner) == (inner,)
    shutil.rmtree(inner / ".git")
    moved.parent.mkdir()
    inner.rename(moved)
    assert (user.session(moved), user.session(moved / "sub")) == (None, None)
    text = growth(user.find(moved), user.known).text
    assert text.startswith(
        f"{moved} belonged to the project {inner}, and would now belong to {home / 'work'}: "
    )
    assert user.session(home / "work") == (home / "work",)
    assert user.session(moved / "sub", accept=True) == (home / "work",)
    assert user.session(moved) == (home / "work",)
    assert user.folders[inner].reach == (inner,)


def test_data_that_the_user_moves_say_no_more_than_they_could(user, area, home, git):
    assert user.session(area / "main") == (area / ".git", area / "main")
    (home / "new").mkdir()
    (area / ".git").rename(home / "new/.git")
    (area / "feature").rename(home / "new/feature")
    git(home / "new/.git", "worktree", "repair", str(home / "new/feature"))
    git(home, "config", "-f", str(home / "new/.git/config"), "core.bare", "false")
    assert user.session(home / "new/feature") is None
    git(home, "config", "-f", str(home / "new/.git/config"), "core.bare", "true")
    assert user.session(home / "new/feature") == (home / "new/.git", home / "new/feature")


def test_what_is_moved_as_a_whole_is_what_it_was(user, area, home, repository, git):
    for cwd in (repository, area / "main", home / "plain"):
        cwd.mkdir(exist_ok=True)
        assert user.session(cwd) is not None
    for name in ("code", "area", "plain"):
        (home / name).rename(home / f"new-{name}")
    area = home / "new-area"
    git(area / ".git", "worktree", "repair", str(area / "main"))
    assert user.session(home / "new-code") == (home / "new-code",)
    assert user.session(home / "new-code/sub") == (home / "new-code",)
    assert user.session(area / "main") == (area / ".git", area / "main")
    assert user.session(home / "new-plain") == (home / "new-plain",)

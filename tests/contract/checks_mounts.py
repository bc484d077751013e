"""Checks of the contract: folders of the host in the guest."""

import fcntl
import shlex
from pathlib import Path

import anyio
import pytest
from claude_vm_tests_case import by_sshd, check, needs_isolation, open_link, output, python, session, silent

from claude_vm.drivers.api import Mount
from claude_vm.drivers.errors import MountChangedError
from claude_vm.supervisor.ssh.launch import LaunchMode


@needs_isolation
async def read_only_holds_against_root_in_the_guest(case):
    (case.project / "kept").write_text("kept")
    mount = Mount(str(case.project), str(case.project), writable=False)
    async with case.connected(mounts=(mount,)) as (_, _, link):
        where = shlex.quote(mount.guest)
        assert (await by_sshd(link, f"cat {where}/kept")).stdout == b"kept"
        done = await by_sshd(
            link,
            f"cd {where}; touch new; echo x >kept; "
            f"sudo -n mount -o remount,rw {where}; sudo -n touch new; sudo -n sh -c 'echo x >kept'; "
            "sudo -n rm kept; sudo -n chmod 777 .; sudo -n mv kept moved; true",
        )
        assert done.exit_status == 0
    assert [path.name for path in case.project.iterdir()] == ["kept"]
    assert (case.project / "kept").read_text() == "kept"


def known(folder):
    """Return a mount of this very directory, whatever gets its name later."""
    found = folder.stat()
    return Mount(str(folder), str(folder), device=found.st_dev, inode=found.st_ino)


def replace(folder):
    """Put another directory in a directory's place."""
    folder.rename(folder.with_name("moved"))
    folder.mkdir()
    (folder / "file").write_text("another")


@check
async def another_directory_under_the_name_of_a_mount_is_refused(case):
    folder = case.project / "folder"
    folder.mkdir()
    mount = known(folder)
    async with case.started(mounts=(mount,)):
        pass
    before = await case.settled_traces()
    replace(folder)
    async with case.cloned(mounts=(mount,)) as instance_id:
        with anyio.fail_after(case.patience_s), pytest.raises(MountChangedError) as caught:
            await case.driver.start(instance_id, silent)
        assert caught.value.code == "mount-changed"
        assert str(folder) in caught.value.message
    case.expect_traces(before)
    (folder / "file").unlink()
    folder.rmdir()
    async with case.cloned(mounts=(mount,)) as instance_id:
        with pytest.raises(MountChangedError):
            await case.driver.start(instance_id, silent)


@needs_isolation
async def a_vm_that_was_started_ahead_has_the_directory_that_was_there_then(case):
    if not (await case.driver.capabilities()).prestart:
        return
    folder = case.project / "folder"
    folder.mkdir()
    (folder / "file").write_text("meant")
    mount = known(folder)
    async with case.cloned(mounts=(mount,)) as instance_id:
        await case.driver.prestart(instance_id)
        replace(folder)
        access = await case.driver.start(instance_id, silent)
        async with open_link(access, timeout_s=case.patience_s) as link:
            assert (await by_sshd(link, f"cat {shlex.quote(str(folder))}/file")).stdout == b"meant"
    async with case.cloned(mounts=(mount,)) as instance_id:
        with pytest.raises(MountChangedError):
            await case.driver.prestart(instance_id)


@needs_isolation
async def files_belong_to_the_host_user_on_both_sides(case):
    (case.project / "host").write_text("from the host")
    mount = Mount(str(case.project), str(case.project))
    async with case.connected(mounts=(mount,)) as (_, access, link):
        where = shlex.quote(mount.guest)
        done = await by_sshd(
            link, f"cd {where} && stat -c %U host && cat host && mkdir -p new/folder && echo guest >new/file"
        )
        assert done.stdout.decode() == f"{access.user}\nfrom the host", done
        (case.project / "later").write_text("later")
        assert (await by_sshd(link, f"cat {where}/later")).stdout == b"later"
        new = case.project / "new/file"
        assert new.read_text() == "guest\n"
        owner = case.project.stat()
        assert (new.stat().st_uid, new.stat().st_gid) == (owner.st_uid, owner.st_gid)
        assert new.parent.stat().st_uid == owner.st_uid


@needs_isolation
async def hostile_and_long_paths_are_mounted_exactly(case):
    names = ["plain", "a b,c:d", "quote'\"$(id)", "é漢", "new\nline", "p" * 200]
    mounts = []
    for number, name in enumerate(names):
        folder = case.project / name
        folder.mkdir()
        (folder / "file").write_text(str(number))
        mounts.append(Mount(str(folder), str(folder)))
    async with case.connected(mounts=tuple(mounts)) as (_, _, link):
        for number, mount in enumerate(mounts):
            assert (await by_sshd(link, f"cat {shlex.quote(mount.guest + '/file')}")).stdout == str(
                number
            ).encode()


@needs_isolation
async def mounts_inside_mounts_are_mounted_outer_first(case):
    outer, inner = case.project / "outer", case.project / "inner"
    (outer / "sub").mkdir(parents=True)
    inner.mkdir()
    (inner / "file").write_text("inner")
    (outer / "file").write_text("outer")
    mounts = (Mount(str(inner), "/mnt/x/sub", writable=False), Mount(str(outer), "/mnt/x"))
    async with case.connected(mounts=mounts) as (_, _, link):
        done = await by_sshd(
            link, "cat /mnt/x/file /mnt/x/sub/file; echo y >/mnt/x/written; echo n >/mnt/x/sub/written"
        )
        assert done.stdout == b"outerinner"
    assert (outer / "written").exists()
    assert not (inner / "written").exists()


_SHARED = """
import errno, fcntl, mmap, os, sys
where = sys.argv[1]
os.chdir(where)
facts = {}

def fact(name, work):
    try:
        facts[name] = work()
    except OSError as error:
        facts[name] = errno.errorcode[error.errno]

def exclusive():
    os.close(os.open('exclusive', os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    return 'made'

def lock(kind):
    def take():
        with open('locked', 'r+') as file:
            if kind == 'flock':
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            else:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return 'granted'
    return take

def shared_map():
    with open('mapped', 'r+b') as file:
        with mmap.mmap(file.fileno(), 4096) as memory:
            seen = memory[:4]
            memory[:5] = b'guest'
            memory.flush()
    return seen.decode()

def unlinked(work):
    def run():
        with open('gone', 'w+b') as file:
            os.unlink('gone')
            file.write(b'data')
            file.flush()
            return work(file)
    return run

def read_back(file):
    file.seek(0)
    return file.read().decode()

def truncate(file):
    os.ftruncate(file.fileno(), 1)
    return 'done'

def append():
    for number in range(100):
        with open('appended', 'a') as file:
            file.write('guest\\n')
    return 'done'

def long_path():
    path = '/'.join(['d' * 200] * 8)
    os.makedirs(path)
    with open(path + '/file', 'w') as file:
        file.write('long')
    return len(open(path + '/file').read())

fact('exclusive', exclusive)
fact('flock', lock('flock'))
fact('fcntl', lock('fcntl'))
fact('mmap', shared_map)
fact('unlinked', unlinked(read_back))
fact('truncate', unlinked(truncate))
fact('append', append)
fact('long', long_path)
fact('rename', lambda: os.replace('locked', 'renamed'))
fact('symlink', lambda: os.symlink('mapped', 'link') or os.readlink('link'))
print(facts)
"""


@needs_isolation
async def a_shared_folder_keeps_what_is_documented_of_it(case):
    """What works and what doesn't, between host and guest. The failures are those of docs and of the spec."""
    project = case.project
    for name in ("locked", "appended"):
        (project / name).write_text("")
    (project / "mapped").write_bytes(b"host" + bytes(4092))
    (project / "exclusive").write_text("")
    mount = Mount(str(project), str(project))
    with (project / "locked").open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.lockf(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        async with case.connected(mounts=(mount,)) as (_, _, link):
            facts = eval(await python(link, _SHARED, mount.guest))
            for _ in range(100):
                with (project / "appended").open("a") as file:
                    file.write("host\n")
            more = await by_sshd(
                link, f"cd {shlex.quote(mount.guest)} && wc -l <appended && echo guest >>appended"
            )
    assert facts == {
        "exclusive": "EEXIST",
        # Locks are the guest's own affair: the host's are not seen there.
        "flock": "granted",
        "fcntl": "granted",
        "mmap": "host",
        "unlinked": "data",
        "truncate": "ENOENT",
        "append": "done",
        "long": 4,
        "rename": None,
        "symlink": "mapped",
    }, facts
    assert more.stdout.split() == [b"200"]
    assert (project / "appended").read_text() == "guest\n" * 100 + "host\n" * 100 + "guest\n"
    assert (project / "mapped").read_bytes()[:5] == b"guest"
    assert (project / "renamed").exists()
    assert not (project / "gone").exists()
    assert (project / "link").is_symlink()
    assert Path(project, *["d" * 200] * 8, "file").read_text() == "long"


# Two processes look at a folder while a third one writes in it. An alarm ends it if the kernel loops.
_LOOKED_AT = """
import os, signal, sys, time
os.chdir(sys.argv[1])
end = time.monotonic() + 5
for _ in range(2):
    if not os.fork():
        while time.monotonic() < end:
            for name in os.listdir():
                try:
                    os.stat(name)
                except FileNotFoundError:
                    pass
        os._exit(0)
signal.alarm(20)
number, lost = 0, []
while time.monotonic() < end:
    name, text = f'made-{number % 10}', f'{number}\\n'
    if number % 20 < 10 and os.path.exists(name):
        os.unlink(name)
    with open(name, 'w') as file:
        file.write(text)
    with open(name) as file:
        if file.read() != text:
            lost.append(number)
    with open('grown', 'a') as file:
        file.write(text)
    number += 1
print(number, lost)
"""


@needs_isolation
async def what_is_written_stays_while_others_look_at_it(case):
    """A `stat` that is under way when a file grows must not cut off what the file has got meanwhile."""
    mount = Mount(str(case.project), str(case.project))
    async with case.connected(mounts=(mount,)) as (_, _, link):
        number, lost = (await python(link, _LOOKED_AT, mount.guest)).split(maxsplit=1)
    assert lost == "[]", f"of {number} files"
    written = int(number)
    assert written > 20
    assert (case.project / "grown").read_text() == "".join(f"{one}\n" for one in range(written))
    made = {one: (case.project / f"made-{one % 10}").read_text() for one in range(written - 10, written)}
    assert made == {one: f"{one}\n" for one in made}


@needs_isolation
async def changes_of_the_host_are_visible_but_not_told(case):
    """Content and names are fresh at the next look; the guest's inotify knows nothing of the host."""
    watch = """
import ctypes, os, select, sys
def look():
    names = sorted(os.listdir(sys.argv[1]))
    return names, open(sys.argv[1] + '/changed').read(), os.path.exists(sys.argv[1] + '/removed')
libc = ctypes.CDLL(None, use_errno=True)
# What was seen once could be kept; so all is looked at before it changes.
print(look())
fd = libc.inotify_init1(os.O_NONBLOCK)
assert libc.inotify_add_watch(fd, os.fsencode(sys.argv[1]), 0xfff) >= 0
print('ready', flush=True)
sys.stdin.readline()
told = bool(select.select([fd], [], [], 0)[0])
print(told, look())
open(sys.argv[1] + '/own', 'w').close()
print(bool(select.select([fd], [], [], 5)[0]))
"""
    (case.project / "changed").write_text("old")
    (case.project / "removed").write_text("")
    mount = Mount(str(case.project), str(case.project))
    async with (
        case.connected(mounts=(mount,)) as (instance_id, _, link),
        session(case, instance_id, link, LaunchMode.EXEC, ["python3", "-c", watch, mount.guest]) as process,
    ):
        ready = await process.read_stdout(100)
        assert ready == b"(['changed', 'removed'], 'old', True)\nready\n", ready
        (case.project / "changed").write_text("new content")
        (case.project / "added").write_text("")
        (case.project / "removed").unlink()
        await process.write(b"\n")
        told = await output(process)
        assert told == b"False (['added', 'changed'], 'new content', False)\nTrue\n", told

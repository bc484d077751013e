"""What is looked at after a session, when it is told, and what becomes of it when a supervisor ends."""

import time

import anyio
import anyio.lowlevel
import msgspec
import pytest
from claude_vm_tests_user import wait_until

from claude_vm.drivers.errors import DriverError
from claude_vm.supervisor.core.keys import MountKey
from claude_vm.supervisor.daemon.sessions import scanning
from claude_vm.supervisor.daemon.sessions.scanning import Scanner
from claude_vm.supervisor.daemon.state.reports import KEPT, KEPT_S, NAMED, Reports

MOUNTS = (MountKey("/p", "/p", writable=True, device=1, inode=2), MountKey("/r", "/r", writable=False))


def found(*files, unseen=()):
    return {
        "files": [{"path": path, "at": at} for path, at in files],
        "files_count": len(files),
        "unseen": list(unseen),
        "unseen_count": len(unseen),
    }


async def serve_until(scanner, condition):
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(scanner.serve)
        with anyio.fail_after(10):
            while not condition():
                await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()


def test_a_session_that_can_write_nothing_owes_nothing(tmp_path):
    reports = Reports(tmp_path)
    assert not reports.request("a1", "/p", 0.0, MOUNTS[1:])
    assert reports.all() == []


def test_a_full_disk_holds_no_session_up(tmp_path):
    (tmp_path / "reports").touch()
    assert not Reports(tmp_path).request("a1", "/p", 0.0, MOUNTS)


def test_old_reports_go_and_no_more_than_enough_stay(tmp_path):
    reports = Reports(tmp_path)
    for number in range(KEPT + 3):
        assert reports.request(f"{number:04}", "/p", 0.0, MOUNTS)
    old = msgspec.structs.replace(reports.all()[-1], session="old", ended_at=time.time() - KEPT_S - 1)
    reports.write(old)
    reports.prune()
    left = [report.session for report in reports.all()]
    assert "old" not in left
    assert left == [f"{number:04}" for number in range(KEPT + 3)][-len(left) :]
    assert len(left) >= KEPT - 1


def test_a_damaged_report_is_none(tmp_path):
    reports = Reports(tmp_path)
    assert reports.request("a1", "/p", 0.0, MOUNTS)
    (tmp_path / "reports/b2.json").write_text("{")
    assert [report.session for report in reports.all()] == ["a1"]


def test_a_report_names_few_and_counts_all(tmp_path):
    reports = Reports(tmp_path)
    reports.request("a1", "/p", 0.0, MOUNTS)
    (report,) = reports.of("/p")
    assert report.lines == ()
    many = {**found(*((f"/p/{n}", 1.0) for n in range(NAMED + 2))), "files_count": 400}
    (line,) = msgspec.structs.replace(report, findings=many).lines
    assert "through 400 files" in line
    assert f"/p/{NAMED - 1} and {400 - NAMED} more" in line
    (line,) = msgspec.structs.replace(report, findings=found(unseen=[("/p/x", "no")])).lines
    assert line.startswith("after the session a1, a folder could not be searched for files ")
    assert line.endswith(" outside of its mounts: /p/x (no)")


@pytest.mark.anyio
async def test_sessions_with_the_same_mounts_are_looked_at_together_each_since_its_own_beginning(tmp_path):
    reports = Reports(tmp_path)
    looks = []

    async def scan(roots, since):
        looks.append(([root["path"] for root in roots], since))
        return found(("/p/old", 150.0), ("/p/new", 250.0))

    for session, since in (("a1", 100.0), ("b2", 200.0), ("c3", 300.0)):
        reports.request(session, "/p", since, MOUNTS)
    await serve_until(Scanner(reports, scan), lambda: all(r.findings for r in reports.all()))
    assert looks == [(["/p"], 100.0)]
    told = {report.session: [f["path"] for f in report.findings["files"]] for report in reports.all()}
    assert told == {"a1": ["/p/old", "/p/new"], "b2": ["/p/new"]}  # of the third nothing is to be told


@pytest.mark.anyio
async def test_a_folder_that_can_never_be_searched_is_told_once(tmp_path):
    reports = Reports(tmp_path)
    hidden = [("/p/hidden", "no")]

    async def scan(roots, since):
        return found(unseen=[*hidden])

    for session in ("a1", "b2"):
        reports.request(session, "/p", 100.0, MOUNTS)
        await serve_until(Scanner(reports, scan), lambda: all(r.findings for r in reports.all()))
    assert [report.session for report in reports.all()] == ["a1"]
    hidden.append(("/p/other", "no"))
    reports.request("c3", "/p", 100.0, MOUNTS)
    await serve_until(Scanner(reports, scan), lambda: all(r.findings for r in reports.all()))
    (line,) = reports.all()[-1].lines
    assert line.startswith("after the session c3, a folder could not be searched for files ")
    assert line.endswith(" outside of its mounts: /p/other (no)")


@pytest.mark.anyio
async def test_a_scan_that_is_cut_off_stays_pending_and_the_next_supervisor_does_it(tmp_path):
    reports = Reports(tmp_path)
    begun = []

    async def endless(roots, since):
        begun.append(since)
        await anyio.sleep_forever()

    async def scan(roots, since):
        return found(("/p/a", since))

    reports.request("a1", "/p", 100.0, MOUNTS)
    await serve_until(Scanner(reports, endless), lambda: begun)
    assert [report.findings for report in reports.all()] == [None]
    await serve_until(Scanner(reports, scan), lambda: reports.all()[0].findings)


@pytest.mark.anyio
async def test_one_supervisor_of_a_home_looks_at_a_time(tmp_path):
    reports = Reports(tmp_path)
    begun = []

    async def endless(roots, since):
        begun.append(since)
        await anyio.sleep_forever()

    reports.request("a1", "/p", 100.0, MOUNTS)
    async with anyio.create_task_group() as tasks:
        for _ in range(2):
            tasks.start_soon(Scanner(reports, endless).serve)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    assert begun == [100.0]


@pytest.mark.anyio
async def test_a_look_that_fails_is_told_and_not_repeated(tmp_path, monkeypatch):
    async def fails(*_, **__):
        raise DriverError("killed")

    monkeypatch.setattr(scanning, "run_tool", fails)
    reports = Reports(tmp_path)
    reports.request("a1", "/p", 100.0, MOUNTS)
    await serve_until(Scanner(reports), lambda: reports.all()[0].findings)
    assert "could not be searched" in reports.all()[0].lines[0]


@pytest.mark.anyio
async def test_a_change_that_the_next_session_finds_again_is_told_once(tmp_path):
    """It may lie within the margin of the next one's beginning."""
    reports = Reports(tmp_path)
    looks = [found(("/p/f", 100.0)), found(("/p/f", 100.0), ("/p/g", 100.05)), found(("/p/f", 101.0))]

    async def scan(_roots, _since):
        return looks.pop(0)

    for session, since in (("a1", 99.0), ("b2", 100.05), ("c3", 100.9)):
        reports.request(session, "/p", since, MOUNTS)
        await serve_until(
            Scanner(reports, scan),
            lambda name=session: all(r.findings for r in reports.all() if r.session == name),
        )
    told = {r.session: [(f["path"], f["at"]) for f in r.findings["files"]] for r in reports.all()}
    assert told == {"a1": [("/p/f", 100.0)], "b2": [("/p/g", 100.05)], "c3": [("/p/f", 101.0)]}


LEAVES = "echo changed >> near"


@pytest.fixture
def linked(ready):
    """A user in whose project lies a file that also has a name outside."""
    (ready.home / "far").touch()
    (ready.project / "near").hardlink_to(ready.home / "far")
    return ready


def said(done):
    return [line for line in done.stderr.decode().splitlines() if "NOTHING IS ISOLATED" not in line]


def test_a_change_under_another_name_is_told_once_at_the_next_command_and_listed(linked):
    assert said(linked.run("shell", LEAVES)) == []
    wait_until(lambda: b"told-after-session" in (linked.data / "logs/daemon.log").read_bytes())
    told = linked.run("-q", "shell", "exit 3")
    assert told.returncode == 3
    (line,) = said(told)
    assert line.startswith("claude-vm: the session ")
    assert line.endswith(f"through a file that has other names there: {linked.project}/near")
    assert said(linked.run("shell", "exit 4")) == []
    (report,) = linked.json("info")["reports"]
    assert f"claude-vm: {report}" == line
    assert [row["reports"] for row in linked.json("ps", "--all")] == [[report], [], []]
    assert report in linked.run("ps", "--all").stdout.decode()
    assert report in linked.run("info").stdout.decode()


def test_a_session_that_changes_nothing_of_the_kind_leaves_no_report(linked):
    before = (linked.project / "near").stat().st_ctime
    wait_until(lambda: time.time() - before > 1.5)
    assert linked.run("shell", "cat near; echo x > own").returncode == 0
    wait_until(lambda: list((linked.data / "reports").iterdir()) == [linked.data / "reports/lock"])
    assert linked.json("info")["reports"] == []


def test_a_session_without_a_daemon_owes_its_look_to_the_next_supervisor(linked):
    assert linked.run("--no-daemon", "shell", LEAVES).returncode == 0
    wait_until(lambda: linked.json("info")["reports"])  # starts the daemon

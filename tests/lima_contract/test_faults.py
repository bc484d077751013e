"""What the stand-in does on request, and the real one now and then: only the stand-in has these tests."""

import pytest

FAULTS = "LIMACTL_STANDIN_FAULTS"


@pytest.fixture
def limactl(stand_in):
    return stand_in


def test_a_delete_can_find_what_the_killed_host_agent_still_wrote(lima):
    lima.env[FAULTS] = "delete-race"
    folder = lima.create()

    with lima.started():
        done = lima.run("delete", "--force", "a")

    done.expect(
        f"failed to delete instance `a`: failed to remove `{folder}`: unlinkat {folder}: directory not empty"
    )
    assert [path.name for path in folder.iterdir()] == ["ha.stderr.log"]
    (error,) = lima.run("delete", "--force", "a").said("fatal")
    assert "it was NOT deleted" in error


def test_the_first_start_can_find_its_port_taken(lima, waiting):
    lima.env[FAULTS] = "port-race"
    lima.create()

    first = lima.begin("start", "--foreground", "a")
    first.communicate(timeout=60)

    taken = "Could not set up host forwarding rule"
    waiting(lambda: taken in " ".join(message for _, message in lima.log()))
    lima.kill_processes()
    with lima.started():
        assert lima.listed()["status"] == "Running"

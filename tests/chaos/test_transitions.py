"""The supervisor is killed at each transition of a VM, with a pool; simulated VMs, which die with it.

`tests/daemon/dispatch/test_faults.py` has the transitions of a session that has to wait for its VM.
"""

import os

import pytest
from claude_vm_tests_user import wait_until

pytestmark = pytest.mark.timeout(120)

WHENS = ("begun", "before", "after")
OF_A_REFILL = [f"{when}:{kind}" for kind in ("clone", "start", "connect") for when in WHENS] + [
    "before:prime"
]
OF_A_CLAIM = [f"{when}:{kind}" for kind in ("run", "delete") for when in WHENS] + ["after:run-started"]
if "CHAOS_KILLS" not in os.environ:  # each transition once; all of them are for `make chaos`
    OF_A_REFILL = ["after:clone", "before:start", "before:prime", "after:connect"]
    OF_A_CLAIM = ["begun:run", "after:run-started", "after:run", "before:delete", "after:delete"]
# A session that can't be taken for another, in a guest that can't be taken for one that was used.
WORDS = ("shell", "--", "sh", "-c", 'test ! -e "$HOME/used" && touch "$HOME/used" && echo fresh')


def sources(user):
    return [row["source"] for row in user.json("ps", "--all")]


def nothing_is_left(user):
    """What the next command finds, and that the next session gets a VM that none had before."""
    assert user.survey.settle() == []
    after = user.run(*WORDS)
    assert (after.returncode, after.stdout) == (0, b"fresh\n")
    assert user.survey.settle() == []
    assert user.survey.double_claims() == []


@pytest.mark.parametrize("moment", OF_A_REFILL)
def test_a_supervisor_killed_while_a_vm_is_made_ready_leaves_nothing(pool_user, moment):
    pool_user.stop_daemon()
    died = pool_user.run("pool", "fill", env={"CLAUDE_VM_FAULT": f"{moment}=kill-self"})
    assert died.returncode == 1
    assert b"[daemon-lost]" in died.stderr or b"daemon" in died.stderr
    nothing_is_left(pool_user)


@pytest.mark.parametrize("moment", OF_A_CLAIM)
def test_a_supervisor_killed_under_a_claimed_vm_leaves_nothing_and_tells_its_client(pool_user, moment):
    pool_user.stop_daemon()
    filled = pool_user.run("pool", "fill", env={"CLAUDE_VM_FAULT": f"{moment}=kill-self"})
    assert filled.returncode == 0, filled.stderr.decode()
    died = pool_user.run(*WORDS)
    assert died.returncode == 125
    assert b"daemon" in died.stderr
    nothing_is_left(pool_user)


def test_the_source_of_these_claims_is_the_pool(pool_user):
    assert pool_user.run("pool", "fill").returncode == 0
    assert pool_user.run(*WORDS).returncode == 0
    assert sources(pool_user)[-1] == "warm"


@pytest.mark.parametrize("moment", ["before:clone", "before:prime"])
def test_a_refill_that_fails_is_tried_again_and_no_session_learns_of_it(pool_user, moment):
    pool_user.stop_daemon()
    # The first VM is the session's own; the second is made ready after it.
    done = pool_user.run(*WORDS, env={"CLAUDE_VM_FAULT": f"{moment}#2=raise"})
    assert (done.returncode, done.stdout) == (0, b"fresh\n")
    wait_until(lambda: [pool["warm"] for pool in pool_user.json("pool", "status")["pools"]] == [1])
    assert "[injected-fault]" not in done.stderr.decode()
    assert '"injected-fault"' in (pool_user.data / "logs" / "daemon.log").read_text()
    nothing_is_left(pool_user)


@pytest.mark.parametrize("number", [2])
def test_a_deletion_that_fails_is_repeated_until_nothing_is_left(pool_user, number):
    pool_user.stop_daemon()
    faults = ",".join(f"before:delete#{n}=raise" for n in range(1, number + 1))
    done = pool_user.run(*WORDS, env={"CLAUDE_VM_FAULT": faults})
    assert (done.returncode, done.stdout) == (0, b"fresh\n")
    nothing_is_left(pool_user)


def test_the_survey_sees_a_vm_that_the_pool_does_not_know(pool_user):
    """Each of its three sources, with a decoy."""
    survey = pool_user.survey
    assert survey.settle() == []
    decoy = pool_user.data / "sim" / "daemon" / "i-00000dec0e"
    decoy.mkdir(parents=True)
    try:
        assert any("i-00000dec0e" in line for line in survey.surplus())
    finally:
        decoy.rmdir()
    claims = survey.claims
    survey.claims = lambda: [*claims(), claims()[-1]]
    try:
        assert len(survey.double_claims()) == 2
    finally:
        survey.claims = claims

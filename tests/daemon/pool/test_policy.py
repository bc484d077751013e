"""From settings to what the pool may do."""

import pytest

from claude_vm.context.config.layers import load_settings
from claude_vm.drivers.programs import nobody_writes
from claude_vm.supervisor.core.policy import PoolPolicy
from claude_vm.supervisor.daemon.pool import policy as module
from claude_vm.supervisor.daemon.pool.policy import (
    auto_instances,
    budget_problem,
    memory_mib,
    pool_policy,
    read_policy,
)

HOST_MIB = 16050


@pytest.fixture
def policy(tmp_path):
    """Return the policy of a global file with this text, on a host with 16,050 MiB."""

    def made(text=""):
        (tmp_path / ".claude-vm.toml").write_text(text)
        return pool_policy(load_settings(flags={}, environ={}, home=tmp_path), HOST_MIB, 4)

    return made


def test_without_a_file_one_vm_is_kept_ready_within_half_of_the_memory(policy):
    assert policy() == PoolPolicy(
        size=1,
        paused=1,
        max_instances=20,
        idle_timeout_s=1800.0,
        max_age_s=43200.0,
        memory_budget_mib=8025,
        memory_reserve_mib=802,
    )


def test_every_setting_of_the_pool_reaches_the_policy(policy):
    text = (
        'size = 3\npaused = 2\nmax_instances = 30\nidle_timeout = "90s"\nmax_age = "1h30m"\n'
        'memory_budget = "6GB"\n'
    )
    assert policy(f"[pool]\n{text}") == PoolPolicy(
        size=3,
        paused=2,
        max_instances=30,
        idle_timeout_s=90.0,
        max_age_s=5400.0,
        memory_budget_mib=6144,
        memory_reserve_mib=802,
    )


@pytest.mark.parametrize(
    ("budget", "mib"),
    [("1%", 160), ("50%", 8025), ("100%", 16050), ("33%", 5296), ("1GB", 1024), ("12 GB", 12288)],
)
def test_a_budget_is_a_share_of_the_host_or_a_size(budget, mib):
    assert memory_mib(budget, HOST_MIB) == mib


def test_the_file_is_read_from_the_home_directory_that_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("CLAUDE_VM_CPUS", "junk")  # nothing that is the pool's
    monkeypatch.setattr(module, "host_memory_mib", lambda: HOST_MIB)
    assert read_policy(tmp_path, nobody_writes).size == 1
    (tmp_path / ".claude-vm.toml").write_text("[pool]\nsize = 0\n")
    assert read_policy(tmp_path, nobody_writes).size == 0


def test_a_wrong_file_says_nothing_about_the_pool(tmp_path):
    (tmp_path / ".claude-vm.toml").write_text("[pool]\nsize = 2\n[vm]\nmemroy = 1\n")
    assert read_policy(tmp_path, nobody_writes) is None


@pytest.mark.parametrize(
    ("size", "budget", "problem"), [(1, 8192, False), (1, 8191, True), (0, 8191, False), (1, None, False)]
)
def test_a_budget_that_holds_no_vm_is_a_problem_with_a_way_out(size, budget, problem):
    found = budget_problem(PoolPolicy(size=size, memory_budget_mib=budget), 8192)
    assert (found is not None) == problem
    if found:
        what, fix = found
        assert "8192 MiB" in what
        assert "8191 MiB" in what
        assert "memory_budget" in fix


def test_nothing_is_started_ahead_where_nothing_is_kept_ready_unless_it_is_asked_for(policy):
    assert policy("[pool]\nsize = 0\n").paused == 0
    assert policy("[pool]\nsize = 0\npaused = 2\n").paused == 2
    assert policy("[pool]\nsize = 4\npaused = 0\n").paused == 0


@pytest.mark.parametrize(
    ("host_mib", "cores", "most"),
    [(2000, 1, 8), (8000, 4, 10), (16050, 8, 20), (24105, 2, 31), (24105, 1, 16), (65536, 16, 85)],
)
def test_as_many_vms_as_the_hosts_memory_and_cores_are_for(host_mib, cores, most):
    assert auto_instances(host_mib, cores) == most

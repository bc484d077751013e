"""What all tests share: CI must not pass by skipping, nor depend on how it was started."""

import contextlib
import functools
import importlib.util
import os
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Time is no criterion: a busy machine is not a defect.
# No database: the checkout may be another user's.
settings.register_profile(
    "claude-vm", deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("claude-vm")

# A shell's background job, or nohup, ignores these; every program that a test starts would inherit that.
for _number, _action in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGQUIT, signal.SIG_DFL),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _action)


# Descriptors that were left open for this process are nobody else's: a test may look at a program's.
for _number in range(3, 256):
    with contextlib.suppress(OSError):
        os.set_inheritable(_number, False)


HERE = Path(__file__).parent


def load(name, path):
    """Load a module of the tests under a name of its own; once."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


choice = load("claude_vm_tests_choice", HERE / "standins" / "choice.py")

TALLY = pytest.StashKey[choice.Tally]()
ON_PATH = pytest.StashKey()


def pytest_configure(config):
    folders = PARTS.get(config.getoption("--part"))
    if folders and config.args_source is not pytest.Config.ArgsSource.ARGS:
        config.args[:] = [str(HERE / folder) for folder in folders]
    config.stash[TALLY] = choice.Tally()
    config.stash[ON_PATH] = functools.cache(choice.on_path)


def pytest_generate_tests(metafunc):
    """Run a test that wants a `limactl` with each that there is."""
    if "limactl" in metafunc.fixturenames and "stand_in" not in metafunc.fixturenames:
        found = choice.choices(metafunc.config.getoption("--limactl"))
        ids = [one.label.removesuffix(" for limactl").replace(" ", "-") for one in found]
        metafunc.parametrize("limactl", found, ids=ids, indirect=True)


@pytest.fixture(scope="session")
def data_folders():
    """Return the data folder of each driver, with a template that is built when it is first asked for."""
    made = load("claude_vm_tests_data_folder", HERE / "data_folder.py").DataFolders()
    yield made
    made.close()


@pytest.fixture
def limactl(request, tmp_path):
    """Return the folder of an installation whose ``bin`` has the `limactl` to test."""
    request.node.user_properties.append(("limactl", request.param.label))
    request.param.install(tmp_path / "prefix")
    return tmp_path / "prefix"


@pytest.fixture
def stand_in(request, tmp_path):
    """Return the folder of an installation of the stand-in."""
    request.node.user_properties.append(("limactl", choice.STAND_IN))
    choice.Choice(choice.STAND_IN, None).install(tmp_path / "prefix")
    return tmp_path / "prefix"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Note which `limactl` the drivers' own tests use: the one that comes first on ``PATH``."""
    on_lima = "tests/e2e" in item.nodeid and item.config.getoption("--driver") == "lima"
    of_lima = ("lima" in item.nodeid or on_lima) and item.get_closest_marker("vm") is not None
    if of_lima and "limactl" not in item.fixturenames:
        item.user_properties.append(("limactl", item.config.stash[ON_PATH]()))


def pytest_terminal_summary(terminalreporter, config):
    """Say which `limactl` the tests ran."""
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.getreports(outcome):
            for name, label in getattr(report, "user_properties", ()):
                if name == "limactl":
                    config.stash[TALLY].count(label, outcome)
    lines = config.stash[TALLY].lines()
    if lines:
        terminalreporter.section("limactl")
        for line in lines:
            terminalreporter.write_line(line)


# Folders whose tests without VMs are a part of their own.
APART = ("chaos", "daemon", "ssh")
# What each part of tests/lanes.py collects. "rest" has the tests of all other folders.
PARTS = {
    "e2e": ("e2e",),
    "vm": ("contract", "images", "lima", "lima_contract", "qemu"),
    "timed": ("bench", "core", "daemon"),
    **{folder: (folder,) for folder in APART},
    "rest": tuple(
        p.name for p in HERE.iterdir() if p.is_dir() and p.name[0] not in "._" and p.name not in APART
    ),
}


def part(item):
    """Return which of the parts that tests/lanes.py runs a test belongs to."""
    folder = item.path.relative_to(HERE).parts[0]
    if item.get_closest_marker("vm") is not None:
        return "e2e" if folder == "e2e" else "vm"
    if item.get_closest_marker("timed") is not None:
        return "timed"
    return folder if folder in APART else "rest"


def of_lima(item):
    """Tell whether a test is one of those that `standins/tested.py` keeps a record of."""
    of_vms = "lima" in item.nodeid and item.nodeid.startswith(("tests/lima/", "tests/contract/"))
    return item.nodeid.startswith("tests/lima_contract/") or (
        of_vms and item.get_closest_marker("vm") is not None
    )


def pytest_collection_modifyitems(config, items):
    """Leave out tests of other parts, and those that say nothing of a stand-in or nothing new."""
    wanted = config.getoption("--part")
    for item in items:
        if item.path.relative_to(HERE).parts[0] not in PARTS[part(item)]:
            raise pytest.UsageError(f"{item.nodeid} is in none of the folders of its part")
    lima_is_tested = config.getoption("--lima-is-tested")
    stood_in = config.stash[ON_PATH]() == choice.STAND_IN
    left_out = [
        item
        for item in items
        if (wanted and part(item) != wanted)
        or (stood_in and item.get_closest_marker("real_limactl"))
        or (lima_is_tested and of_lima(item))
    ]
    config.hook.pytest_deselected(items=left_out)
    others = set(left_out)
    items[:] = [item for item in items if item not in others]


def pytest_addoption(parser):
    """``--no-skips``: a skipped test is a failure, for machines where all of them can run."""
    parser.addoption("--part", choices=PARTS, help="run the tests of one part only, see tests/lanes.py")
    parser.addoption("--lima-is-tested", action="store_true", help="leave out the tests of Lima's code")
    kinds = ("all", "stand-in", "real")
    parser.addoption("--driver", default="qemu", choices=("qemu", "lima"), help="what tests/e2e run on")
    parser.addoption("--limactl", default="all", choices=kinds, help="which limactl tests run with")
    parser.addoption("--no-skips", action="store_true", help="fail when a test is skipped")
    parser.addoption("--may-skip", default=[], action="append", help="unless its reason has this text")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Turn a skip into a failure under ``--no-skips``."""
    outcome = yield
    report = outcome.get_result()
    if not report.skipped or hasattr(report, "wasxfail") or not item.config.getoption("--no-skips"):
        return
    reason = str(report.longrepr)
    if not any(excused in reason for excused in item.config.getoption("--may-skip")):
        report.outcome = "failed"
        report.longrepr = f"skipped, but it should run here: {report.longrepr}"

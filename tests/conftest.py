"""What all tests share: CI must not pass by skipping."""

import pytest
from hypothesis import HealthCheck, settings

# Time is no criterion: a busy machine is not a defect.
# No database: the checkout may be another user's.
settings.register_profile(
    "claude-vm", deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("claude-vm")


def pytest_addoption(parser):
    """``--no-skips``: a skipped test is a failure, for machines where all of them can run."""
    parser.addoption("--no-skips", action="store_true", help="fail when a test is skipped")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Turn a skip into a failure under ``--no-skips``."""
    outcome = yield
    report = outcome.get_result()
    if report.skipped and not hasattr(report, "wasxfail") and item.config.getoption("--no-skips"):
        report.outcome = "failed"
        report.longrepr = f"skipped, but it should run here: {report.longrepr}"

"""The drivers' contract as plain functions: each takes a `Case` and raises AssertionError where it is broken.

`test_contract.py` runs them against every driver, `test_broken_drivers.py` against drivers that break them on
purpose. A check that needs a machine of its own says so by `needs_isolation`; the simulated guests have none.
The checks are beside this file, by subject.
"""

import claude_vm_tests_checks_guest  # noqa: F401 - each adds its checks
import claude_vm_tests_checks_machine  # noqa: F401
import claude_vm_tests_checks_memory  # noqa: F401
import claude_vm_tests_checks_mounts  # noqa: F401
import claude_vm_tests_checks_prestart  # noqa: F401
import claude_vm_tests_checks_records  # noqa: F401
import claude_vm_tests_checks_session  # noqa: F401
from claude_vm_tests_case import CHECKS, NEED_ISOLATION, Case, silent

__all__ = ["CHECKS", "NEED_ISOLATION", "Case", "silent"]

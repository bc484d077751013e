"""`docs/listings.md` names the keys that listings really have."""

import re
from pathlib import Path

import pytest

from claude_vm.supervisor.daemon.commands.doctor import DriverReport
from claude_vm.supervisor.daemon.commands.info import ProjectInfo
from claude_vm.supervisor.daemon.commands.pool_status import PoolRow, PoolStatus
from claude_vm.supervisor.daemon.commands.ps import SessionRow
from claude_vm.supervisor.daemon.commands.story import StoryRecord

TEXT = (Path(__file__).parents[3] / "docs/listings.md").read_text()


@pytest.mark.parametrize("record", [SessionRow, StoryRecord, DriverReport, ProjectInfo, PoolStatus, PoolRow])
def test_every_key_is_documented_and_no_other_in_their_order(record):
    _, _, after = TEXT.partition(f"<!-- keys: {record.__name__} -->\n")
    table, _, _ = after.partition("\n\n")
    documented = re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE)
    assert tuple(documented) == record.__struct_fields__

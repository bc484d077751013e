"""`claude-vm ps --story ID`: what happened to a session, or to a VM, step by step."""

import msgspec

from claude_vm.supervisor.core.core import Core
from claude_vm.supervisor.core.story import FINISHED_KEYS
from claude_vm.supervisor.daemon.clients.command import Command
from claude_vm.supervisor.daemon.clients.table import table
from claude_vm.supervisor.daemon.errors import CommandError
from claude_vm.supervisor.grammar.declaring import cut
from claude_vm.supervisor.grammar.near_misses import FLAG_EDITS, edits

SUGGESTED = 3
"""Ids that a message names at most."""


class StoryRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What happened to one id, oldest first, as ``ps --story ID --json`` prints it.

    `kind` is ``session`` or ``vm``. The core bounds both the steps that it keeps and the length of a note.
    """

    id: str
    kind: str
    state: str
    steps: list[dict[str, object]]


async def story(command: Command, name: str, *, json: bool) -> int:
    """Tell the story of a session or a VM; an unambiguous beginning of its id is enough.

    Raises:
        CommandError: There is no such story, or no such one any more.
    """
    core = command.supervisor.dispatcher.core
    found = _find(core, name)
    of_session = core.session_story(found).steps
    steps = of_session or core.instance_story(found).steps
    state, kind = steps[-1].after, "session" if of_session else "vm"
    if json:
        shown = [step._asdict() for step in steps]
        await command.out_json(StoryRecord(id=found, kind=kind, state=state, steps=shown))
        return 0
    rows = [(f"{step.at - steps[0].at:.3f}", *step[1:]) for step in steps]
    begun = "" if steps[0].before == "absent" else " (what came before is not kept)"
    await command.out(
        f"{kind} {found}: {state}{begun}", *table(("SECONDS", "FROM", "CAUSE", "TO", "NOTE"), rows)
    )
    return 0


def _find(core: Core, name: str) -> str:
    """Return the id that begins with a name."""
    told = core.told()
    if name in told:
        return name
    if core.knows(name):
        raise CommandError(
            "no-such-story",
            f"what happened to '{name}' is no longer kept",
            hint=f"the last {FINISHED_KEYS} that ended are kept, as long as the daemon runs",
        )
    found = [known for known in told if known.startswith(name)]
    if len(found) == 1:
        return found[0]
    near = found or [known for known in told if edits(name, known, FLAG_EDITS) <= FLAG_EDITS]
    reason = "is ambiguous" if found else "is neither a session nor a VM of this daemon"
    hint = (
        f"did you mean {' or '.join(near[:SUGGESTED])}?" if near else "list sessions with: claude-vm ps --all"
    )
    raise CommandError("no-such-story", f"'{cut(name)}' {reason}", hint=hint)

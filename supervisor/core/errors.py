"""What the core raises."""

from claude_vm.supervisor.core.events import Event
from claude_vm.supervisor.core.story import Story


class InvalidTransition(Exception):  # noqa: N818 - the word of the architecture; it is no failure of the outside
    """An event does not fit the state of the thing that it is about: a defect of whoever sent it.

    The core is as it was before. `key` is the id of the session or instance (also where it is unknown),
    `state` the name of its state, `story` what happened to it before.
    """

    code = "invalid-transition"

    def __init__(self, *, key: str, state: str, event: Event, story: Story) -> None:
        super().__init__(f"{type(event).__name__} does not fit '{key}', which is {state}")
        self.key = key
        self.state = state
        self.event = event
        self.story = story

    def __str__(self) -> str:
        """Say what did not fit, and the story beneath it."""
        return f"{self.args[0]}\n{self.story}".rstrip()

"""What the simulation tells of."""

from typing import Final

from claude_vm.drivers.api import Phase


class SimPhase:
    """Phases of a start, and of a template."""

    SIMULATE: Final = Phase("simulate", "simulating a VM")
    SIMULATE_TEMPLATE: Final = Phase("simulate_template", "building a simulated template")

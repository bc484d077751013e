"""What Lima's driver alone tells of."""

from typing import Final

from claude_vm.drivers.api import Phase


class LimaPhase:
    """Phases of a start, and of an import."""

    LIMACTL: Final = Phase("limactl", "starting limactl")
    QEMU: Final = Phase("qemu", "starting QEMU")
    IMPORT: Final = Phase("import", "importing an image")

"""What all drivers of virtual machines tell of."""

from typing import Final

from claude_vm.drivers.api import Phase


class VmPhase:
    """Phases of starts, of snapshots and of templates."""

    RESTORE: Final = Phase("restore", "restoring")
    BOOT: Final = Phase("boot", "booting")
    IDENTITY: Final = Phase("identity", "identity")
    MOUNTS: Final = Phase("mounts", "mounts")
    SNAPSHOT: Final = Phase("snapshot", "preparing a snapshot")
    SNAPSHOT_AWAITED: Final = Phase("snapshot_awaited", "waiting for another snapshot")
    NO_SNAPSHOT: Final = Phase("no_snapshot", "no snapshot can be made")
    BAD_SNAPSHOT: Final = Phase("bad_snapshot", "the snapshot does not work")
    BOOT_AGAIN: Final = Phase("boot_again", "booting again")
    NO_KVM: Final = Phase("no_kvm", "KVM does not work here")
    CERTIFICATES: Final = Phase("certificates", "installing certificates")
    INSTALL_CLAUDE: Final = Phase("install_claude", "installing Claude Code")
    WARM_UP: Final = Phase("warm_up", "warming up")
    SAVE: Final = Phase("save", "taking a snapshot")
    STORE: Final = Phase("store", "storing the template")

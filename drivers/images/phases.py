"""What makers of images tell of."""

from typing import Final

from claude_vm.drivers.api import Phase


class ImagePhase:
    """Phases of getting Claude Code, and of making an image."""

    CLAUDE: Final = Phase("claude", "Claude Code")
    DOWNLOAD: Final = Phase("download", "downloading Claude Code")
    UNPACK: Final = Phase("unpack", "unpacking Claude Code")
    IMAGE: Final = Phase("image", "building the guest image")
    IMAGE_AWAITED: Final = Phase("image_awaited", "waiting for another build of the image")

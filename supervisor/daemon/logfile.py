"""The daemon's log: structured lines in a rotated file.

What a client sends (arguments, environment) is never logged, so there is nothing to redact; ids, states,
phases and errors are.
"""

import logging
import logging.handlers
import sys
from pathlib import Path

import structlog

MAX_BYTES = 4 * 1024 * 1024
KEPT_FILES = 3


def configure(path: Path | None) -> None:
    """Send structlog and the libraries' warnings to `path` as JSON lines, or to stderr in colour-free text.

    Raises:
        OSError: The file can't be opened.
    """
    handler: logging.Handler
    if path is None:
        handler = logging.StreamHandler(sys.stderr)
        renderer: structlog.typing.Processor = structlog.dev.ConsoleRenderer(colors=False)
    else:
        path.touch(mode=0o600)  # a supervisor inside a client has that one's umask
        handler = logging.handlers.RotatingFileHandler(path, maxBytes=MAX_BYTES, backupCount=KEPT_FILES)
        renderer = structlog.processors.JSONRenderer()
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    # asyncssh tells each channel at INFO; that is the journal's business.
    logging.getLogger("asyncssh").setLevel(logging.WARNING)
    logging.getLogger("qemu").setLevel(logging.WARNING)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )

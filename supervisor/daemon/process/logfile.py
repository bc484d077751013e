"""The daemon's log: structured lines in a rotated file.

What a client sends (arguments, environment) is never logged, so there is nothing to redact; ids, states,
phases and errors are.
"""

import logging
import logging.handlers
import sys
from pathlib import Path

import structlog

from claude_vm.supervisor.daemon.process.log_pace import Pace
from claude_vm.supervisor.wire.error_text import beneath
from claude_vm.supervisor.wire.escape import escape_line

MAX_BYTES = 4 * 1024 * 1024
KEPT_FILES = 3


def configure(path: Path | None) -> None:
    """Send structlog and the libraries' warnings to `path` as JSON lines, or to stderr in plain lines.

    Raises:
        OSError: The file can't be opened.
    """
    handler: logging.Handler
    # A line that can't be written must be no traceback on the stderr of a client.
    logging.raiseExceptions = path is None
    if path is None:
        handler = logging.StreamHandler(sys.stderr)
        renderer: structlog.typing.Processor = _readable
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
    handler.addFilter(Pace())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    # asyncssh tells each channel at INFO; that is the journal's business.
    logging.getLogger("asyncssh").setLevel(logging.WARNING)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def silence() -> None:
    """Log nothing: there is nowhere to write it, and a client's stderr is not for it."""
    logging.getLogger().handlers[:] = [logging.NullHandler()]
    structlog.configure(processors=[], logger_factory=structlog.ReturnLoggerFactory())


_console = structlog.dev.ConsoleRenderer(colors=False)


def _readable(logger: structlog.typing.WrappedLogger, name: str, event: structlog.typing.EventDict) -> str:
    """Return an event as a line for people, and a traceback beneath it. What is said in them ends no line."""
    trace = str(event.pop("exception", ""))
    lines = [str(_console(logger, name, event)), *(beneath(line) for line in trace.split("\n") if line)]
    return "\n".join(escape_line(line) for line in lines)

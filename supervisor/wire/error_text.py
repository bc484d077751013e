"""How a failure is told: one line with its code, and beneath it what belongs to it."""


def error_text(error: BaseException, code: str = "") -> tuple[str, tuple[str, ...]]:
    """Return the line that tells an error, and the lines beneath it, none of them escaped.

    Those are its `lines` (a list of problems, a tool's last words) and its `hint`, where it has them. `code`
    is for errors that have none of their own.
    """
    lines = tuple(getattr(error, "lines", ()))
    text = getattr(error, "message", str(error)) if lines else str(error)
    hint = getattr(error, "hint", "")
    return f"claude-vm: {text} [{getattr(error, 'code', code)}]", (*lines, *((hint,) if hint else ()))


def beneath(line: str) -> str:
    """Return a line as it stands beneath another one: nothing that it says looks like a line of its own."""
    return f"  {line}"

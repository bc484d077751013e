"""The terminal and locale variables of a session, in terms that the guest knows."""

import re
from collections.abc import Collection, Mapping
from typing import NamedTuple

from claude_vm.context.terminfo import is_terminal_name, terminfo_file
from claude_vm.drivers.api import GuestFile

FALLBACK_TERM = "xterm-256color"
FALLBACK_LOCALE = "C.UTF-8"

_LOCALE_VARIABLES = (
    "LANG", "LC_ALL", "LC_ADDRESS", "LC_COLLATE", "LC_CTYPE", "LC_IDENTIFICATION", "LC_MEASUREMENT",
    "LC_MESSAGES", "LC_MONETARY", "LC_NAME", "LC_NUMERIC", "LC_PAPER", "LC_TELEPHONE", "LC_TIME",
)  # fmt: skip
_COLORTERM = re.compile(r"[A-Za-z0-9._+-]{1,32}")


class GuestTerminal(NamedTuple):
    """What a session's terminal needs: its type, the variables (``TERM`` among them), files for the guest."""

    term: str
    environment: dict[str, str]
    files: tuple[GuestFile, ...]


def guest_terminal(
    environment: Mapping[str, str],
    *,
    known_terms: Collection[str],
    known_locales: Collection[str],
    terminfo: bytes | None = None,
) -> GuestTerminal:
    """Return what the guest is told about the client's terminal and locale.

    `known_terms` and `known_locales` are what the template's guest has (`TemplateRecord`). `terminfo` is the
    client's compiled description of its terminal, if there is one: used only when the guest lacks it. A type
    that the guest neither has nor can be taught becomes ``xterm-256color``.
    """
    term = environment.get("TERM", "")
    files: tuple[GuestFile, ...] = ()
    if not is_terminal_name(term):
        term = FALLBACK_TERM
    elif term not in known_terms:
        taught = terminfo_file(term, terminfo) if terminfo is not None else None
        files = (taught,) if taught else ()
        term = term if taught else FALLBACK_TERM
    found = {"TERM": term}
    if _COLORTERM.fullmatch(color := environment.get("COLORTERM", "")):
        found["COLORTERM"] = color
    return GuestTerminal(term, found | guest_locale(environment, known_locales), files)


def guest_locale(environment: Mapping[str, str], known: Collection[str]) -> dict[str, str]:
    """Return the locale variables; one that the guest lacks, or none, becomes ``C.UTF-8``."""
    spelled = {_folded(name): name for name in known}
    found = {}
    for variable in _LOCALE_VARIABLES:
        if value := environment.get(variable):
            plain = value in {"C", "POSIX"}
            found[variable] = value if plain else spelled.get(_folded(value), FALLBACK_LOCALE)
    return found or {"LANG": FALLBACK_LOCALE}


def _folded(locale: str) -> str:
    """Return a locale's name with its character set in one spelling: ``UTF-8`` and ``utf8`` are the same."""
    language, dot, rest = locale.partition(".")
    charset, at, modifier = rest.partition("@")
    return f"{language}{dot}{charset.lower().replace('-', '')}{at}{modifier}"

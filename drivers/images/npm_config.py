"""Where the user's npm gets its packages from, and with which credentials.

Nothing here knows a registry's address: it comes from the environment, from the user's ``.npmrc`` files, or
from npm itself. The files of a project are never read. Credentials stay in the `NpmRegistry` record, whose
`repr` hides them, and leave it only as a header for an address that they were configured for.

Source: npm's documentation of its configuration ("config", "npmrc", "scope").
"""

import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import msgspec

from claude_vm.drivers.errors import DriverError
from claude_vm.drivers.files import read_beginning
from claude_vm.drivers.programs import Programs, search

_SCOPE = "@anthropic-ai:registry"
_ANY = "registry"
_MAX_NPMRC_BYTES = 256 * 1024
_NPM_TIMEOUT_S = 20.0
_VARIABLE = re.compile(r"(?<!\\)\$\{([A-Za-z_][A-Za-z0-9_]*)(\?)?\}")
_HINT = (
    "name the npm registry that you use: `npm config set registry ADDRESS`, a line `registry=ADDRESS` in "
    "~/.npmrc, or npm_config_registry=ADDRESS in the environment"
)


class NpmRegistry(msgspec.Struct, frozen=True):
    """An npm registry: its address (ends with ``/``), who named it, and the user's npm settings.

    `ca_file` is the extra CA bundle of npm's ``cafile``, or "".
    """

    address: str
    named_by: str
    settings: dict[str, str]
    ca_file: str = ""

    def __repr__(self) -> str:
        """The address alone: settings hold credentials."""
        return f"Registry({without_credentials(self.address)!r}, named_by={self.named_by!r})"

    def authorization(self, url: str) -> str | None:
        """Return the value of the Authorization header for an address, or None.

        npm ties credentials to the beginning of an address without its scheme (``//host/path/:_authToken``);
        the longest beginning wins. Nothing is sent to an address that no setting names.
        """
        parts = urlsplit(url)
        path = parts.path if parts.path.endswith("/") else parts.path.rpartition("/")[0] + "/"
        host = parts.netloc.rpartition("@")[2]
        while True:
            place = f"//{host}{path}"
            for prefix in (place, place.rstrip("/")):
                if token := self.settings.get(f"{prefix}:_authToken"):
                    return f"Bearer {token}"
                if basic := self.settings.get(f"{prefix}:_auth"):
                    return f"Basic {basic}"
            if path == "/":
                return None
            path = path.rstrip("/").rpartition("/")[0] + "/"


def without_credentials(url: str) -> str:
    """Return an address that may be shown: no user name, no password, no query."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def find_registry(environ: Mapping[str, str], programs: Programs | None = None) -> NpmRegistry:
    """Return the registry that `npm install @anthropic-ai/…` would use outside any project.

    Reads files and may run npm (up to 20 s): call it from a worker thread. `environ` is the client's
    environment, not that of this process; npm is looked for in `programs`,
    without any in what `environ` names.

    Raises:
        DriverError: Nothing names a registry, or what names it is no http address.
    """
    programs = search(environ.get("PATH", "")) if programs is None else programs
    settings: dict[str, str] = {}
    named_by: dict[str, str] = {}
    for source, found in _layers(environ):  # nearest first
        for key, value in found.items():
            if value and key not in settings:
                settings[key] = value
                named_by[key] = source
    for key in (_SCOPE, _ANY):
        if key in settings:
            return _registry(settings[key], named_by[key], settings)
    for value in _ask_npm(environ, programs):
        return _registry(value, "npm config", settings)
    raise DriverError(
        f"no npm registry is configured on this host, and {programs.absence('npm')}", hint=_HINT
    )


def _registry(address: str, named_by: str, settings: dict[str, str]) -> NpmRegistry:
    """Check an address and make the record."""
    try:
        parts = urlsplit(address)
        valid = (
            parts.scheme in {"http", "https"} and bool(parts.hostname) and not re.search(r"[\s\0]", address)
        )
        _ = parts.port
    except ValueError:
        valid = False
    if not valid:
        raise DriverError(f"the npm registry named by {named_by} is not an http(s) address", hint=_HINT)
    return NpmRegistry(address.rstrip("/") + "/", named_by, settings, ca_file=settings.get("cafile", ""))


def _layers(environ: Mapping[str, str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield npm's settings from the nearest layer to the farthest, as (name, settings)."""
    from_environment = {
        re.sub(r"(?i)^npm_config_", "", name): value
        for name, value in environ.items()
        if name.lower().startswith("npm_config_")
    }
    # npm takes names in any case, with _ for -; scopes and tokens keep their spelling.
    folded = {k if "/" in k or ":" in k else k.lower(): v for k, v in from_environment.items()}
    yield "the environment", folded
    for path in _files(environ, folded):
        text = read_beginning(path, _MAX_NPMRC_BYTES).decode("utf-8", "replace")
        yield str(path), _parse(text, environ)


def _files(environ: Mapping[str, str], folded: Mapping[str, str]) -> Iterator[Path]:
    """Yield the places of ``.npmrc`` files, nearest first."""
    home = environ.get("HOME", "")
    if user := folded.get("userconfig") or (f"{home}/.npmrc" if home.startswith("/") else ""):
        yield Path(user)
    if configured := folded.get("globalconfig"):
        yield Path(configured)
        return
    prefix = folded.get("prefix") or environ.get("PREFIX", "")
    if prefix.startswith("/"):
        yield Path(prefix, "etc", "npmrc")
    yield Path("/etc/npmrc")


def _parse(text: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the settings of an npmrc text: ``key = value`` lines, ``${NAME}`` from the environment."""

    def expand(match: re.Match[str]) -> str:
        # An unset variable stays as it is written (npm does so), unless it is marked with "?".
        return environ.get(match[1], "" if match[2] else match[0])

    found: dict[str, str] = {}
    for line in text.splitlines():
        key, equals, value = line.strip().partition("=")
        if not equals or key.startswith((";", "#", "[")):
            continue
        value = value.strip()
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
            value = value[1:-1]
        else:
            value = re.split(r"\s[;#]", value, maxsplit=1)[0].strip()
        found[_VARIABLE.sub(expand, key.strip())] = _VARIABLE.sub(expand, value)
    return found


def _ask_npm(environ: Mapping[str, str], programs: Programs) -> Iterator[str]:
    """Yield the registries that npm itself would use, the scope's first; nothing without npm."""
    npm = programs.find("npm")
    if npm is None:
        return
    kept = {k: v for k, v in environ.items() if k == "HOME" or k.lower().startswith("npm_config_")}
    kept["PATH"] = programs.path  # npm is a script, and asks there for what it needs
    for key in (_SCOPE, _ANY):
        try:
            answer = subprocess.run(
                [npm, "config", "get", key],
                env=kept,
                cwd="/",  # not the project: its own .npmrc must not decide
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_NPM_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.SubprocessError):
            return
        value = answer.stdout.decode("utf-8", "replace").strip()
        if answer.returncode == 0 and value not in {"", "undefined", "null"}:
            yield value

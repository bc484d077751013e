"""What Claude Code finds in the guest user's home and environment, so that it starts without a question.

Found out by starting the real Claude Code 2.1 in fresh homes: with these files it shows its input box at
once, with an API key, a bearer token or an OAuth token alone. Which entry answers which question:

* ``hasCompletedOnboarding``, ``theme``: the welcome screens and the choice of colours (and a connection test
  that ignores ``ANTHROPIC_BASE_URL``);
* ``projects.<directory>.hasTrustDialogAccepted``: "do you trust the files in this folder?"; an entry counts
  for the directories beneath it too, but the entries beside it count for the git root or, outside git, for
  the working directory alone: both must be named;
* ``customApiKeyResponses.approved``: "do you want to use this API key?"; holds the last 20 characters;
* ``skipDangerousModePermissionPrompt`` in the settings: the warning of ``--dangerously-skip-permissions``;
* ``enableAllProjectMcpServers`` in the settings, ``hasClaudeMdExternalIncludesApproved``: what a project's
  ``.mcp.json`` starts and what its ``CLAUDE.md`` includes. Both stay inside the VM.

Everything here is pure: mappings in, mappings and `GuestFile`s out.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from claude_vm.context.loopback import guest_proxies, guest_url
from claude_vm.drivers.api import GuestFile

CREDENTIALS = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN")
"""Variables whose values are secrets: by file only, never in arguments or logs."""

BASE_URL = "ANTHROPIC_BASE_URL"

GUEST_CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"

_KEY_TAIL = 20

_SETTINGS = {"skipDangerousModePermissionPrompt": True, "enableAllProjectMcpServers": True}
_TRUST = {
    "hasTrustDialogAccepted": True,
    "hasClaudeMdExternalIncludesApproved": True,
    "hasClaudeMdExternalIncludesWarningShown": True,
}


def claude_json(*, trusted: Iterable[str], api_key: str | None, version: str | None = None) -> dict[str, Any]:
    """Return the content of ``~/.claude.json``.

    `trusted` are guest directories (absolute): the project's root and the working directory. `api_key` is
    the session's key, or None. `version` is Claude Code's in the template: with it nothing is announced as
    new.
    """
    found: dict[str, Any] = {
        "hasCompletedOnboarding": True,
        "theme": "dark",
        "projects": dict.fromkeys(trusted, _TRUST),
    }
    if version is not None:
        found["lastOnboardingVersion"] = found["lastReleaseNotesSeen"] = version
    if api_key:
        found["customApiKeyResponses"] = {"approved": [api_key[-_KEY_TAIL:]], "rejected": []}
    return found


def home_files(
    *, trusted: Iterable[str], environment: Mapping[str, str], version: str | None, instructions: str = ""
) -> tuple[GuestFile, ...]:
    """Return the files for the guest user's home, to be put before Claude Code starts.

    `environment` is the session's, as `session_environment` returns it. `instructions` are what Claude is
    told about its machine. The files hold the end of the API key: they are for this session's disposable
    guest, never for a template.
    """
    state = claude_json(trusted=trusted, api_key=environment.get("ANTHROPIC_API_KEY"), version=version)
    return (
        GuestFile(path=".claude.json", data=_encode(state), mode=0o600),
        GuestFile(path=".claude/settings.json", data=_encode(_SETTINGS), mode=0o600),
        GuestFile(path=".claude/CLAUDE.md", data=instructions.encode(), mode=0o600),
    )


def session_environment(
    client_environment: Mapping[str, str], host_address: str, *, user: str = "claude"
) -> dict[str, str]:
    """Return the variables that a session gets from its client's environment, in the guest's terms.

    `host_address` is what the guest calls the host's loopback (`drivers.api.Capabilities`): addresses on
    the client's loopback are rewritten to it. Empty variables count as unset. Terminal and locale are the
    business of `claude_vm.context.terminal`. The result holds secrets.
    """
    found = {name: value for name in CREDENTIALS if (value := client_environment.get(name))}
    if base := client_environment.get(BASE_URL):
        found[BASE_URL] = guest_url(base, host_address)
    found |= guest_proxies(client_environment, host_address)
    # The VM is thrown away: an update would be downloaded for nothing, in each session anew.
    found["DISABLE_AUTOUPDATER"] = "1"
    found["NODE_EXTRA_CA_CERTS"] = GUEST_CA_BUNDLE
    # No `--bg`, no `/bg`, and no "move to background" when it ends: all of it would go with the VM. What its
    # tools run in the background while it works is another switch, and stays.
    found["CLAUDE_CODE_DISABLE_AGENT_VIEW"] = "1"
    if user == "root":
        # Claude Code refuses to skip permissions as root, unless it is told that this is a sandbox.
        found["IS_SANDBOX"] = "1"
    return found


def _encode(document: Mapping[str, Any]) -> bytes:
    """Return JSON. ASCII only, so that paths with undecodable bytes survive as escapes."""
    return json.dumps(document, indent=2, ensure_ascii=True).encode("ascii") + b"\n"

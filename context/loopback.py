"""Addresses on the client's loopback, rewritten to what the guest calls the host.

Inside a guest ``127.0.0.1`` is the guest itself. A base URL or a proxy that listens on the host's loopback is
reached by another address, which the driver knows (10.0.2.2 under QEMU).
"""

import ipaddress
import re
import socket
from collections.abc import Mapping

PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "ftp_proxy")

_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)?(?P<authority>[^/?#]*)(?P<rest>.*)", re.DOTALL)
_AUTHORITY = re.compile(r"(?P<user>.*@)?(?P<host>\[[^\]]*\]|[^:]*)(?P<port>:[0-9]*)?", re.DOTALL)


def is_loopback(host: str) -> bool:
    """Whether a host name or address (IPv6 also in brackets) means the machine itself.

    The unspecified address counts, because connecting to it reaches the machine itself. No name is resolved.
    Source: RFC 6761, section 6.3 (``localhost`` and everything beneath it); inet_aton(3) for ``127.1``.
    """
    name = host.removeprefix("[").removesuffix("]").partition("%")[0].removesuffix(".").lower()
    if name in {"localhost", "ip6-localhost", "ip6-loopback"} or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        if not re.fullmatch(r"[0-9a-fx]+(?:\.[0-9a-fx]+){0,3}", name):
            return False
        try:
            address = ipaddress.ip_address(socket.inet_aton(name))
        except OSError:
            return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_loopback or address.is_unspecified


def guest_url(url: str, host_address: str) -> str:
    """Return a URL (or ``HOST:PORT``) with a loopback host replaced; all else stays byte for byte."""
    whole = _URL.fullmatch(url)
    if whole is None:  # pragma: no cover - the pattern matches every text
        return url
    parts = _AUTHORITY.fullmatch(whole["authority"])
    if parts is None or not parts["host"] or not is_loopback(parts["host"]):
        return url
    host = f"[{host_address}]" if ":" in host_address else host_address
    return f"{whole['scheme'] or ''}{parts['user'] or ''}{host}{parts['port'] or ''}{whole['rest']}"


def guest_proxies(environment: Mapping[str, str], host_address: str) -> dict[str, str]:
    """Return the proxy variables, in both cases as they are set, in the guest's terms.

    What is on the host's loopback must not go through a proxy elsewhere, so `host_address` joins ``no_proxy``
    when there is any proxy.
    """
    found: dict[str, str] = {}
    for lower in PROXY_VARIABLES:
        for name in (lower, lower.upper()):
            if value := environment.get(name):
                found[name] = guest_url(value, host_address)
    if not found:
        return {}
    exceptions = {name: environment[name] for name in ("no_proxy", "NO_PROXY") if environment.get(name)}
    if not exceptions:
        # Programs read one spelling or the other, and the guest's own loopback needs no proxy either.
        exceptions = dict.fromkeys(("no_proxy", "NO_PROXY"), "localhost,127.0.0.1,::1")
    for name, value in exceptions.items():
        entries = {entry.strip() for entry in value.split(",")}
        found[name] = value if {"*", host_address} & entries else f"{value.rstrip(', ')},{host_address}"
    return found

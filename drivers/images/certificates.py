"""The certificates that this host trusts, for a guest behind the same proxies.

Source for the places: the layouts of Debian, Fedora, openSUSE, Alpine and macOS; for the format: RFC 7468.
"""

import base64
import binascii
import re
import ssl
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from claude_vm.drivers.files import read_beginning

MAX_BUNDLE_BYTES = 8 * 1024 * 1024
MAX_CERTIFICATES = 2000

BUNDLES = (
    Path("/etc/ssl/certs/ca-certificates.crt"),  # Debian, Ubuntu, Arch, Alpine
    Path("/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem"),  # Fedora, RHEL
    Path("/etc/pki/tls/certs/ca-bundle.crt"),
    Path("/etc/ssl/ca-bundle.pem"),  # openSUSE
    Path("/etc/ssl/cert.pem"),  # macOS, Alpine
)
KEYCHAINS = (
    "/Library/Keychains/System.keychain",
    "/System/Library/Keychains/SystemRootCertificates.keychain",
)

_BLOCK = re.compile(rb"-----BEGIN (?:TRUSTED |X509 )?CERTIFICATE-----([\sA-Za-z0-9+/=]*)-----END ")
_SECURITY_TIMEOUT_S = 20.0


def _read_bundle(path: Path) -> bytes:
    return read_beginning(path, MAX_BUNDLE_BYTES)


def host_certificates(
    environ: Mapping[str, str],
    *,
    bundles: tuple[Path, ...] = BUNDLES,
    read_named: Callable[[Path], bytes] = _read_bundle,
) -> tuple[str, ...]:
    """Return the CA certificates of this host as PEM texts, each once, in the order in which they were found.

    ``SSL_CERT_FILE`` and ``NODE_EXTRA_CA_CERTS`` of the client's environment come first; where the former is
    not set (or holds nothing), the first of the system's bundles that does is added, and on macOS what an
    administrator put into the keychain. Files that can't be read are passed over; what is no certificate is
    left out. `read_named` reads the files that variables name. Blocking: call it from a worker thread.
    """

    def of_variable(name: str) -> dict[bytes, str]:
        path = environ.get(name, "")
        return _certificates(read_named(Path(path))) if path else {}

    named = of_variable("SSL_CERT_FILE")
    found = dict(named)
    found.update(of_variable("NODE_EXTRA_CA_CERTS"))
    if not named:
        for bundle in bundles:
            if certificates := _certificates(_read_bundle(bundle)):
                found.update(certificates)
                break
        if sys.platform == "darwin":
            found.update(_certificates(_keychains()))
    return tuple(found.values())[:MAX_CERTIFICATES]


def _keychains() -> bytes:  # pragma: no cover - macOS
    """Return the keychains' certificates as PEM, or nothing."""
    try:
        answer = subprocess.run(
            ["/usr/bin/security", "find-certificate", "-a", "-p", *KEYCHAINS],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SECURITY_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return b""
    return answer.stdout[:MAX_BUNDLE_BYTES]


def _certificates(text: bytes) -> dict[bytes, str]:
    """Return the certificates of a bundle, DER to PEM."""
    found: dict[bytes, str] = {}
    store = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for match in _BLOCK.finditer(text):
        try:
            der = base64.b64decode(b"".join(match[1].split()), validate=True)
        except (binascii.Error, ValueError):
            continue
        if (whole := _first_element(der, store)) is not None:
            # OpenSSL's "trusted" form has its own data behind the certificate: left out.
            found[whole] = ssl.DER_cert_to_PEM_cert(whole)
    return found


def _first_element(der: bytes, store: ssl.SSLContext) -> bytes | None:
    """Return the certificate that DER begins with, or None where OpenSSL takes it for none."""
    if len(der) < 4 or der[0] != 0x30 or der[1] not in {0x81, 0x82}:
        return None
    length_bytes = der[1] & 0x7F
    size = 2 + length_bytes + int.from_bytes(der[2 : 2 + length_bytes], "big")
    whole = der[:size]
    try:
        store.load_verify_locations(cadata=whole)
    except (ssl.SSLError, ValueError):
        return None
    return whole

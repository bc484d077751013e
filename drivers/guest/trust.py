"""Runs in the guest while a template is built: trusts the certificates of a file that the guest lacks.

Debian's own tool starts several processes for each certificate that it knows, which takes minutes under
emulation. This adds only what is missing, in the places where that tool would put and keep it.

Usage: trust.py FILE. Prints how many were added. Standard library only; never imported on the host.
"""

import re
import ssl
import subprocess
import sys
from pathlib import Path

BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
LOCAL = Path("/usr/local/share/ca-certificates")
BLOCK = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\n?", re.DOTALL)


def main() -> None:
    """Add what is missing."""
    bundle = BUNDLE.read_text(encoding="ascii")
    known = {ssl.PEM_cert_to_DER_cert(text.strip() + "\n") for text in BLOCK.findall(bundle)}
    added = 0
    LOCAL.mkdir(parents=True, exist_ok=True)
    for text in BLOCK.findall(Path(sys.argv[1]).read_text(encoding="ascii")):
        content = text.strip() + "\n"
        der = ssl.PEM_cert_to_DER_cert(content)
        if der in known:
            continue
        known.add(der)
        name = f"claude-vm-{added:03}"
        (LOCAL / f"{name}.crt").write_text(content, encoding="ascii")
        link = BUNDLE.with_name(f"{name}.pem")
        link.unlink(missing_ok=True)
        link.symlink_to(LOCAL / f"{name}.crt")
        bundle += content
        added += 1
    if added:
        BUNDLE.write_text(bundle, encoding="ascii")
        subprocess.run(["/usr/bin/openssl", "rehash", str(BUNDLE.parent)], check=True)
    print(added)


main()

"""Bounded downloads over HTTP, with the client's certificates and proxies.

Blocking, for worker threads: urllib is enough here, costs no dependency and knows proxies. The environment
is given, because the daemon's own is not the client's.
"""

import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException, HTTPMessage, HTTPResponse
from typing import IO
from urllib.parse import urlsplit

from claude_vm.drivers.errors import BadImageError, DownloadError
from claude_vm.drivers.images.npm_config import NpmRegistry, without_credentials

_CHUNK = 256 * 1024
_HINT = "check the network, the proxy variables (https_proxy, no_proxy) and the certificates (SSL_CERT_FILE)"


class _HttpOnly(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http(s) alone, and never from https to http."""

    def redirect_request(  # noqa: PLR0917 - the base class has them
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        old, new = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if new not in {"http", "https"} or (old == "https" and new == "http"):
            fp.close()
            raise urllib.error.URLError(f"redirected to an address of scheme '{new}'")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class Fetcher:
    """Fetches from one registry. Used by one thread at a time."""

    def __init__(self, registry: NpmRegistry, environ: Mapping[str, str], *, timeout_s: float = 30.0) -> None:
        self._registry = registry
        self._timeout_s = timeout_s
        self._proxies = {
            name.lower().removesuffix("_proxy"): value
            for name, value in sorted(environ.items())  # lower case after upper case: it wins
            if name.lower().endswith("_proxy") and value
        }
        self._tls = _tls_context(registry, environ)

    @contextmanager
    def _open(self, url: str, accept: str) -> Iterator[HTTPResponse]:
        """Open an address; every failure is a `DownloadError`."""
        shown = without_credentials(url)
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"}:
            raise BadImageError(f"the registry names a download that is not an http(s) address: {shown}")
        request = urllib.request.Request(url, headers={"Accept": accept, "User-Agent": "claude-vm"})  # noqa: S310 - checked above
        if authorization := self._registry.authorization(url):
            request.add_unredirected_header("Authorization", authorization)
        bypass = _needs_no_proxy(parts.hostname or "", parts.port, self._proxies.get("no", ""))
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({} if bypass else self._proxies),
            urllib.request.HTTPSHandler(context=self._tls),
            _HttpOnly(),
        )
        try:
            with opener.open(request, timeout=self._timeout_s) as response:
                yield response
        except urllib.error.HTTPError as error:
            with error:
                raise DownloadError(
                    f"{shown}: the server says {error.code} {error.reason}",
                    status=error.code,
                    hint=_hint(error.code),
                ) from error
        except (OSError, HTTPException, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise DownloadError(f"{shown} can't be fetched", detail=str(reason), hint=_HINT) from error

    def text(self, url: str, *, accept: str, max_bytes: int) -> bytes:
        """Return a small document.

        Raises:
            DownloadError: It can't be fetched.
            BadImageError: It is larger than `max_bytes`.
        """
        deadline = time.monotonic() + 4 * self._timeout_s
        parts: list[bytes] = []

        def sink(block: bytes, _total: int | None) -> None:
            if time.monotonic() > deadline:
                raise TimeoutError("the server is too slow")
            parts.append(block)

        self.stream(url, accept=accept, max_bytes=max_bytes, sink=sink)
        return b"".join(parts)

    def stream(
        self, url: str, *, accept: str = "*/*", max_bytes: int, sink: Callable[[bytes, int | None], None]
    ) -> None:
        """Pass a large file to `sink` in pieces, each with the announced total (or None).

        What `sink` raises comes out unchanged, unless it is an OSError.

        Raises:
            DownloadError: It can't be fetched, or ends too early.
            BadImageError: It is larger than `max_bytes`.
        """
        size = 0
        with self._open(url, accept) as response:
            total = response.length
            while block := response.read1(_CHUNK):
                size += len(block)
                if max(size, total or 0) > max_bytes:
                    raise BadImageError(f"{without_credentials(url)} is larger than {max_bytes} bytes")
                sink(block, total)
            if response.length:  # read1 does not tell that a body ended too early
                raise ConnectionError(
                    f"the connection ended after {size} bytes, {response.length} are missing"
                )


def _needs_no_proxy(host: str, port: int | None, exceptions: str) -> bool:
    """Whether ``no_proxy`` names a host: ``*``, a name (and what is beneath it), either with a port."""
    for entry in exceptions.lower().split(","):
        name = entry.strip().removeprefix("*.").removeprefix(".")
        if not name:
            continue
        if name == "*":
            return True
        for candidate in (host, f"{host}:{port}"):
            if candidate == name or candidate.endswith(f".{name}"):
                return True
    return False


def _hint(status: int) -> str:
    if status in {401, 403}:
        return "the registry wants credentials: `npm login`, or //HOST/:_authToken=… in ~/.npmrc"
    if status == 407:
        return "the proxy wants credentials: https_proxy=http://USER:PASSWORD@HOST:PORT"
    return _HINT


def _tls_context(registry: NpmRegistry, environ: Mapping[str, str]) -> ssl.SSLContext:
    """Return a verifying context with the certificates that the client's environment names."""
    context = ssl.create_default_context()
    for path in (environ.get("SSL_CERT_FILE"), environ.get("NODE_EXTRA_CA_CERTS"), registry.ca_file):
        if path:
            try:
                context.load_verify_locations(cafile=path)
            except (OSError, ssl.SSLError):
                continue  # as curl and node do: a bad extra bundle is no reason to stop
    if directory := environ.get("SSL_CERT_DIR"):
        for part in directory.split(":"):
            if part:
                context.load_verify_locations(capath=part)
    return context

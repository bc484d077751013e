"""An npm registry on loopback, with packages of our own making."""

import base64
import gzip
import hashlib
import io
import json
import struct
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

MAIN = "@anthropic-ai/claude-code"
PLATFORM = "@anthropic-ai/claude-code-linux-x64"
MACHINES = {"x64": 62, "arm64": 183}


def program(text="a program", architecture="x64"):
    """Return what passes for a Linux program."""
    return b"\x7fELF\2\1\1" + bytes(11) + struct.pack("<H", MACHINES[architecture]) + text.encode() * 100


def member(name, data=b"", **fields):
    """Return a member of a tarball."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, io.BytesIO(data)


def tarball(*members):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, data in members:
            archive.addfile(info, data)
    return gzip.compress(out.getvalue(), mtime=0)


def package(data=None):
    """Return a tarball as the real one is made: the program is not its first file."""
    return tarball(
        member("package/package.json", b"{}"), member("package/claude", data or program(), mode=0o755)
    )


def integrity(data):
    return "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode()


class Registry:
    """Serves what is published; `requests` holds (path, headers). `truncate` cuts tarballs short."""

    def __init__(self):
        self.documents = {}
        self.tarballs = {}
        self.requests = []
        self.truncate = None
        self.status = None
        self.redirect = None
        self.gate = None
        self.stall = None
        self.started = threading.Event()
        self.finished = threading.Event()
        registry = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_GET(self):
                registry.answer(self)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        for gate in (self.gate, self.stall):
            if gate is not None:
                gate.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, handler):
        path = unquote(urlsplit(handler.path).path)
        self.requests.append((path, dict(handler.headers)))
        if self.redirect is not None:
            handler.send_response(302)
            handler.send_header("location", self.redirect)
            handler.send_header("content-length", "0")
            handler.end_headers()
            return
        body = self.tarballs.get(path)
        if document := self.documents.get(path.removeprefix("/")):
            body = document if isinstance(document, bytes) else json.dumps(document).encode()
        status = self.status or (404 if body is None else 200)
        body = b"{}" if body is None or self.status else body
        handler.send_response(status)
        handler.send_header("content-length", str(len(body)))
        handler.end_headers()
        if path in self.tarballs and self.gate is not None:
            handler.wfile.write(body[:100])
            handler.wfile.flush()
            self.started.set()
            self.gate.wait(30)
            body = body[100:]
            if self.stall is not None:
                handler.wfile.write(body[:100])
                handler.wfile.flush()
                self.stall.wait(20)
                body = body[100:]
                self.finished.set()
        if path in self.tarballs and self.truncate is not None:
            body = body[: self.truncate]
            handler.close_connection = True
        try:
            handler.wfile.write(body)
        except OSError:
            return

    def publish(self, version, data=None, *, main=True, latest=True, **dist):
        """Publish a version of both packages; `dist` overrides what is said about the tarball."""
        data = package() if data is None else data
        path = f"/{PLATFORM}/-/claude-code-linux-x64-{version}.tgz"
        self.tarballs[path] = data
        document = self.documents.setdefault(PLATFORM, {"dist-tags": {}, "versions": {}})
        said = {"tarball": self.url.rstrip("/") + path, "integrity": integrity(data)} | dist
        document["versions"][version] = {"name": PLATFORM, "version": version, "dist": said}
        if latest:
            document["dist-tags"]["latest"] = version
        if main:
            top = self.documents.setdefault(MAIN, {"dist-tags": {}, "versions": {}})
            top["versions"][version] = {"version": version, "optionalDependencies": {PLATFORM: version}}
            if latest:
                top["dist-tags"]["latest"] = version

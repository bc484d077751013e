"""A Messages API on loopback that answers from scripts, so that the real Claude Code can run without a model.

A script is a list of steps (tool calls, then a closing text), chosen by a piece of text that the task must
contain. The server keeps no state between requests: which step comes next is read from the conversation in
the request (the tool results that it already has), so any number of sessions run side by side. A task may
also bring its own steps: ``<scripted>[{"tool": "Bash", "input": {"command": "…"}}]</scripted>``.

It binds 127.0.0.1; a guest of QEMU's user-mode network reaches it as 10.0.2.2 on the same port.

As a program: ``python scripted_api.py --port 8123 --script steps.json --record requests.jsonl``.
Standard library only. Source: the Messages API's documentation ("Messages", "Streaming messages").
"""

import argparse
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

MAX_BODY_BYTES = 64 * 1024 * 1024
CLOSING_TEXT = "The scripted task is done."

_OWN_STEPS = re.compile(r"<scripted>(.*?)</scripted>", re.DOTALL)
_TOOL_ID = "toolu_scripted_"


@dataclass(frozen=True)
class ToolUse:
    """One call of a tool of Claude Code, such as Bash or Write."""

    tool: str
    input: dict[str, Any]


@dataclass(frozen=True)
class Script:
    """What to answer to a task that contains `match`: each tool call in turn, then the text."""

    match: str
    steps: tuple[ToolUse, ...] = ()
    text: str = CLOSING_TEXT

    @classmethod
    def bash(cls, match: str, command: str, *, text: str = CLOSING_TEXT) -> Self:
        """Run one shell command."""
        return cls(match, (ToolUse("Bash", {"command": command, "description": "A scripted step"}),), text)

    @classmethod
    def write(cls, match: str, path: str, content: str, *, text: str = CLOSING_TEXT) -> Self:
        """Write one file; `path` is absolute, in the guest."""
        return cls(match, (ToolUse("Write", {"file_path": path, "content": content}),), text)


@dataclass(frozen=True)
class Recorded:
    """A request that came. Header names are in lower case; `body` is the JSON object, or {}."""

    method: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any] = field(repr=False)

    @property
    def is_task(self) -> bool:
        """Whether it is a turn of a conversation that may call tools (and no title or quota request)."""
        return self.method == "POST" and self.path == "/v1/messages" and bool(self.body.get("tools"))

    @property
    def task(self) -> str:
        """All that the user said, in one text (what the tools said is not in it)."""
        return "\n".join(_user_texts(self.body))

    @property
    def tool_results(self) -> list[dict[str, Any]]:
        """The results of scripted tool calls that the conversation has so far."""
        return [
            block
            for block in _blocks(self.body, "user")
            if block.get("type") == "tool_result" and str(block.get("tool_use_id", "")).startswith(_TOOL_ID)
        ]


def _blocks(body: dict[str, Any], role: str) -> Iterator[dict[str, Any]]:
    for message in body.get("messages") or []:
        if message.get("role") != role:
            continue
        content = message.get("content")
        if isinstance(content, str):
            yield {"type": "text", "text": content}
        else:
            yield from content or []


def _user_texts(body: dict[str, Any]) -> Iterator[str]:
    for block in _blocks(body, "user"):
        if block.get("type") == "text":
            yield str(block.get("text", ""))


class ScriptedApi:
    """The server; a context manager. Safe to use from several threads.

    `requests` grows as they come. `url` is for ``ANTHROPIC_BASE_URL`` on this host, `port` for a guest.
    """

    def __init__(self, *scripts: Script, port: int = 0, record: Path | None = None) -> None:
        self.requests: list[Recorded] = []
        self._scripts = list(scripts)
        self._changed = threading.Condition()
        self._record = record
        api = self

        class Handler(_Handler):
            def recorded(self, request: Recorded) -> None:
                api._add(request)

            def script_for(self, request: Recorded) -> Script:
                return api.script_for(request)

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": 0.05},
            name="scripted-api",
            daemon=True,
        )

    @property
    def url(self) -> str:
        """Its address on this host."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def add(self, script: Script) -> None:
        """Add a script; the latest that matches is taken."""
        with self._changed:
            self._scripts.append(script)

    def script_for(self, request: Recorded) -> Script:
        """Return the script of a request's task."""
        task = request.task
        if own := _OWN_STEPS.search(task):
            try:
                steps = tuple(ToolUse(str(step["tool"]), dict(step["input"])) for step in json.loads(own[1]))
            except (ValueError, KeyError, TypeError) as error:
                return Script("", text=f"the task's scripted steps can't be read: {error!r}")
            return Script(own[0], steps)
        with self._changed:
            for script in reversed(self._scripts):
                if script.match in task:
                    return script
        return Script("")

    def _add(self, request: Recorded) -> None:
        with self._changed:
            self.requests.append(request)
            if self._record is not None:
                line = {
                    "method": request.method,
                    "path": request.path,
                    "headers": request.headers,
                    "body": request.body,
                }
                with self._record.open("a") as file:
                    file.write(json.dumps(line) + "\n")
            self._changed.notify_all()

    def wait_for(self, wanted: Callable[[Recorded], bool], *, timeout_s: float) -> Recorded:
        """Return the first request that is wanted, as soon as it has come.

        Raises:
            TimeoutError: It did not come; the text has what came instead.
        """

        def found() -> Recorded | None:
            return next((request for request in self.requests if wanted(request)), None)

        with self._changed:
            if (request := self._changed.wait_for(found, timeout_s)) is None:
                came = ", ".join(f"{r.method} {r.path}" for r in self.requests) or "nothing"
                raise TimeoutError(f"no such request within {timeout_s} s; what came: {came}")
        return request

    def wait_for_task(self, text: str, *, timeout_s: float) -> Recorded:
        """Return the first turn of the conversation whose task contains `text`."""
        return self.wait_for(lambda request: request.is_task and text in request.task, timeout_s=timeout_s)


class _Handler(BaseHTTPRequestHandler):
    """One connection. Its two hooks are the server's."""

    protocol_version = "HTTP/1.1"
    server_version = "scripted-api"
    sys_version = ""
    timeout = 60

    def recorded(self, request: Recorded) -> None:
        """Take note of a request."""
        raise NotImplementedError

    def script_for(self, request: Recorded) -> Script:
        """Choose its script."""
        raise NotImplementedError

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        """Say nothing: requests are recorded."""

    def _record(self) -> Recorded | None:
        length = int(self.headers.get("content-length") or 0)
        if not 0 <= length <= MAX_BODY_BYTES:
            self._answer(
                413, {"type": "error", "error": {"type": "request_too_large", "message": "too large"}}
            )
            return None
        data = self.rfile.read(length)
        try:
            body = json.loads(data) if data else {}
        except ValueError:
            body = {}
        request = Recorded(
            self.command,
            urlsplit(self.path).path,
            {name.lower(): value for name, value in self.headers.items()},
            body if isinstance(body, dict) else {},
        )
        self.recorded(request)
        return request

    def do_HEAD(self) -> None:
        if self._record():
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

    def do_GET(self) -> None:
        if self._record():
            self._answer(
                404, {"type": "error", "error": {"type": "not_found_error", "message": "not scripted"}}
            )

    def do_POST(self) -> None:
        request = self._record()
        if request is None:
            return
        if request.path == "/v1/messages/count_tokens":
            self._answer(200, {"input_tokens": 1})
        elif request.path == "/v1/messages":
            message = _message(request, self.script_for(request))
            if request.body.get("stream"):
                self._stream(message)
            else:
                self._answer(200, message)
        else:
            self._answer(
                404, {"type": "error", "error": {"type": "not_found_error", "message": "not scripted"}}
            )

    do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815

    def _answer(self, status: int, document: dict[str, Any]) -> None:
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, message: dict[str, Any]) -> None:
        """Send a message as server-sent events, and close the connection."""
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("cache-control", "no-cache")
        self.send_header("connection", "close")
        self.end_headers()
        for event in _events(message):
            self.wfile.write(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
            self.wfile.flush()
        self.close_connection = True


def _message(request: Recorded, script: Script) -> dict[str, Any]:
    """Return the answer to a request: the script's next step, or its text."""
    step = len(request.tool_results)
    offered = {tool.get("name") for tool in request.body.get("tools") or []}
    content: dict[str, Any] = {"type": "text", "text": script.text}
    reason = "end_turn"
    # Requests for a title or a summary offer no tools: they get the text, whatever the task says.
    if step < len(script.steps) and script.steps[step].tool in offered:
        call = script.steps[step]
        reason = "tool_use"
        content = {
            "type": "tool_use",
            "id": f"{_TOOL_ID}{step}",
            "name": call.tool,
            "input": call.input,
        }
    return {
        "id": f"msg_scripted_{step}",
        "type": "message",
        "role": "assistant",
        "model": request.body.get("model") or "scripted",
        "content": [content],
        "stop_reason": reason,
        "stop_sequence": None,
        "usage": {"input_tokens": 10, "output_tokens": 5},
    }


def _events(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a message as the events of a stream."""
    (block,) = message["content"]
    yield {"type": "message_start", "message": {**message, "content": [], "stop_reason": None}}
    if block["type"] == "text":
        yield {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
        yield {"type": "ping"}
        delta: dict[str, Any] = {"type": "text_delta", "text": block["text"]}
    else:
        yield {"type": "content_block_start", "index": 0, "content_block": {**block, "input": {}}}
        yield {"type": "ping"}
        delta = {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
    yield {"type": "content_block_delta", "index": 0, "delta": delta}
    yield {"type": "content_block_stop", "index": 0}
    yield {
        "type": "message_delta",
        "delta": {"stop_reason": message["stop_reason"], "stop_sequence": None},
        "usage": {"output_tokens": 5},
    }
    yield {"type": "message_stop"}


def _scripts(path: Path) -> list[Script]:
    """Read scripts: ``[{"match": …, "steps": [{"tool": …, "input": …}], "text": …}]``."""
    return [
        Script(
            one["match"],
            tuple(ToolUse(step["tool"], step["input"]) for step in one.get("steps", ())),
            one.get("text", CLOSING_TEXT),
        )
        for one in json.loads(path.read_text())
    ]


def main() -> None:
    """Serve until interrupted; the first line of output is the address."""
    parser = argparse.ArgumentParser(description="A scripted Messages API on 127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--script", type=Path, help="a JSON file: a list of match, steps, text")
    parser.add_argument("--record", type=Path, help="append each request to this file, as JSON lines")
    options = parser.parse_args()
    scripts = _scripts(options.script) if options.script else []
    with ScriptedApi(*scripts, port=options.port, record=options.record) as api:
        print(api.url, flush=True)  # noqa: T201 - its only output
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    main()

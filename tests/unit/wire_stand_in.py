"""A web process to test the command line against: real sockets, the specified wire, breakable on demand."""

from __future__ import annotations

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

Json = dict[str, Any]
Event = tuple[str, Json]

JOB = "job_0006fq3k9tma7w2xv5hc8n1re4"


def state(status: str) -> Event:
    """A state event."""
    return "state", {"status": status, "at": 1.0}


def token(text: str) -> Event:
    """A token event."""
    return "token", {"text": text}


ANSWER = [
    state("queued"),
    state("in_progress"),
    token("A lease"),
    token(" is a "),
    token("promise."),
    state("completed"),
]


class StandIn:
    """Answers for one job; `cuts` says after how many bytes each connection to its events ends."""

    def __init__(self, port: int = 0) -> None:
        self.events = list(ANSWER)
        self.cuts: list[int] = []  # for each connection to the events in turn: bytes it lets through
        self.clean_cuts = False  # whether a cut ends the answer in order
        self.hold_after: int | None = None  # keep the connection open after this many events, silent
        self.result: Json = {"output": {"text": "A lease is a promise.", "finish_reason": "stop"}}
        self.record: Json = {"status": "completed"}
        self.answers: dict[str, tuple[int, Json]] = {}  # "METHOD /path" -> what to answer instead
        self.requests: list[tuple[str, str, dict[str, list[str]], Json | None, dict[str, str]]] = []
        self.resumed_after: list[int] = []
        self.drop_next_replies = 0  # take the request, close without an answer
        self.holding = threading.Event()
        self.released = threading.Event()
        self._server = _Server(("127.0.0.1", port), _Handler)
        self._server.stand_in = self
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        """Close the door and every connection."""
        self.released.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def asked(self, method: str, path: str) -> list[Json | None]:
        """The bodies of the requests of this kind."""
        return [body for was, where, _, body, _ in self.requests if (was, where) == (method, path)]

    def document(self) -> Json:
        """The job's record."""
        base: Json = {"id": JOB, "object": "job", "kind": "generation", "model": "demo", "priority": "normal"}
        more = {"user": "anonymous", "created_at": 1_700_000_000.0, "attempts": 0, "claims": 1}
        return {**base, **more, "metrics": {"queue_ms": 12, "run_ms": 1500}, **self.record}


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    stand_in: StandIn


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(20)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def _answer(self, method: str) -> None:
        stand_in = self.server.stand_in
        address = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        entry = (method, address.path, parse_qs(address.query), json.loads(body) if body else None, headers)
        stand_in.requests.append(entry)
        self.close_connection = True
        if stand_in.drop_next_replies and method == "POST":
            stand_in.drop_next_replies -= 1
        elif f"{method} {address.path}" in stand_in.answers:
            self._send(*stand_in.answers[f"{method} {address.path}"])
        elif address.path == f"/v1/jobs/{JOB}/events":
            self._stream(stand_in)
        else:
            self._send(*_usual(stand_in, method, address.path))

    def _send(self, status: int, document: Json) -> None:
        body = b"" if status == 204 else json.dumps(document).encode()
        kind = "application/problem+json" if status >= 400 else "application/json"
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        for name, value in document.get("headers", {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, stand_in: StandIn) -> None:
        after = int(self.headers.get("Last-Event-ID") or 0)
        stand_in.resumed_after.append(after)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        left = stand_in.cuts.pop(0) if stand_in.cuts else None
        self._chunk(b": hello\n\n")
        for number, (name, data) in enumerate(stand_in.events, 1):
            if number <= after:
                continue
            text = json.dumps(data, ensure_ascii=False)
            whole = f"id: {number}\nevent: {name}\ndata: {text}\n\n".encode()
            self._chunk(whole if left is None else whole[:left])
            if left is not None and len(whole) > left:
                return self._cut(stand_in)
            left = None if left is None else left - len(whole)
            if number == stand_in.hold_after:
                stand_in.holding.set()
                stand_in.released.wait(20)
                return self._cut(stand_in)
        self.wfile.write(b"0\r\n\r\n")
        return None

    def _cut(self, stand_in: StandIn) -> None:
        if stand_in.clean_cuts:
            self.wfile.write(b"0\r\n\r\n")
        else:
            self.connection.shutdown(socket.SHUT_RDWR)

    def _chunk(self, data: bytes) -> None:
        if data:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            self.wfile.flush()


def _usual(stand_in: StandIn, method: str, path: str) -> tuple[int, Json]:
    job = stand_in.document()
    paths: dict[str, tuple[int, Json]] = {
        "POST /v1/jobs": (202, {**job, "status": "queued"}),
        f"GET /v1/jobs/{JOB}": (200, job),
        f"GET /v1/jobs/{JOB}/result": (200, {"id": JOB, "kind": "generation", **stand_in.result}),
        f"POST /v1/jobs/{JOB}/cancel": (200, {**job, "status": "cancelled"}),
        f"POST /v1/jobs/{JOB}/retry": (202, {**job, "id": "job_again", "status": "queued"}),
        f"POST /v1/parked/{JOB}/replay": (202, {**job, "status": "queued"}),
    }
    detail = {"type": "about:blank", "title": "Not Found", "status": 404, "detail": "no such job"}
    return paths.get(f"{method} {path}", (404, detail))

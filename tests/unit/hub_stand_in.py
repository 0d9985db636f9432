"""A model hub with one model, on a real socket: what huggingface_hub asks when it fetches, and nothing more."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "a" * 40
FILES = {
    "config.json": b'{"max_position_embeddings": 256}',
    "model.safetensors": b"s" * 3000,
    "pytorch_model.bin": b"p" * 5000,
}


class HubStandIn:
    """`owner/far` at revision `v1`; `asked` lists the paths that were asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self.asked))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Give the port back."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(asked: list[str]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            asked.append(self.path)
            self._answer()

        def _answer(self) -> None:
            data = _content(self.path.partition("?")[0])
            self.send_response(404 if data is None else 200)
            self.send_header("Content-Length", str(len(data or b"")))
            self.send_header("ETag", f'"{hashlib.sha1(data or b"").hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if data and self.command == "GET":
                self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


def _content(path: str) -> bytes | None:
    if path == "/api/models/owner/far/revision/v1":
        return json.dumps(
            {"id": "owner/far", "sha": COMMIT, "siblings": [{"rfilename": name} for name in FILES]}
        ).encode()
    if path == f"/api/models/owner/far/tree/{COMMIT}":
        return json.dumps([_listed(name, data) for name, data in FILES.items()]).encode()
    return FILES.get(path.removeprefix(f"/owner/far/resolve/{COMMIT}/"))


def _listed(name: str, data: bytes) -> dict[str, object]:
    return {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}

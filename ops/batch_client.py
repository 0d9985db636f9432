"""The command line's calls for batches and files."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import httpx

from ops.client import UPLOAD_TIMEOUT_S, Client, Json

LOOK_S = 0.5
OVER = ("completed", "failed", "expired", "cancelled")


class BatchClient(Client):
    """A client that also knows batches."""

    def submit_batch(self, file: Path, endpoint: str, window: str, metadata: dict[str, str] | None) -> Json:
        """Upload a file of requests and make a batch of it, one however often the reply is lost."""
        with file.open("rb") as opened:
            parts = {"purpose": (None, "batch"), "file": (file.name, opened)}
            uploaded = self._json("POST", "/v1/files", files=parts, timeout=UPLOAD_TIMEOUT_S)
        body = {"input_file_id": uploaded["id"], "endpoint": endpoint, "completion_window": window}
        body |= {"metadata": metadata} if metadata else {}
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        return self.patiently(lambda: self._json("POST", "/v1/batches", json=body, headers=headers))

    def batch(self, batch_id: str) -> Json:
        """A batch as it stands."""
        return self._json("GET", _path(batch_id))

    def batches(self, after: str | None, limit: int | None) -> Json:
        """One page of batches."""
        asked = {"after": after, "limit": limit}
        return self._json("GET", "/v1/batches", params={name: value for name, value in asked.items() if value})

    def cancel_batch(self, batch_id: str) -> Json:
        """Ask for a batch to stop; the batch as it is then."""
        return self._json("POST", f"{_path(batch_id)}/cancel")

    def batch_until_its_end(self, batch_id: str, notice: Callable[[str], None]) -> Iterator[Json]:
        """A batch each time that it has changed, to its end; rides over a server that is away."""
        last: Json | None = None
        while True:
            batch = self.patiently(lambda: self.batch(batch_id), notice)
            if batch != last:
                yield batch
            if batch.get("status") in OVER:
                return
            last = batch
            time.sleep(LOOK_S)

    def content(self, file_id: str) -> Iterator[bytes]:
        """A file's content, piece by piece."""
        timeout = httpx.Timeout(UPLOAD_TIMEOUT_S)
        with self._http.stream("GET", f"/v1/files/{quote(file_id, safe='')}/content", timeout=timeout) as response:
            if not response.is_success:
                response.read()
                self._document(response)
            yield from response.iter_bytes()


def _path(batch_id: str) -> str:
    return f"/v1/batches/{quote(batch_id, safe='')}"

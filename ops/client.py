"""The command line's side of the wire: one small HTTP client and a follower of a job's events.

`Client.follow` keeps one promise: every event once and in order, whatever happens to the connection or to the
web process in between. It holds because an event counts only when it came whole, and each connection asks for
what follows the last one.
"""

from __future__ import annotations

import json
import random
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import quote, urlsplit

import httpx

from common.errors import JarvisError
from common.states import TERMINAL
from ops import own_key

ANSWER_TIMEOUT_S = 30.0  # a plain request that takes longer is given up
CONNECT_TIMEOUT_S = 5.0
UPLOAD_TIMEOUT_S = 600.0
SILENCE_S = 60.0  # a stream that is silent for longer is opened anew: its other end may be gone
SUBMIT_TRIES = 3  # safe, since every submit carries an Idempotency-Key
PAUSE_FIRST_S = 0.2
PAUSE_LAST_S = 5.0
PATIENCE_S = 600.0  # a server that is away for longer is given up

Json = dict[str, Any]
Answer = TypeVar("Answer")


class NoServer(JarvisError):
    """Nothing that speaks Jarvis answers."""

    def __init__(self, url: str, reason: str) -> None:
        self.url = url
        self.reason = reason
        super().__init__(f"no Jarvis at {url}: start it with make run ({reason})")


class Refused(JarvisError):
    """The server answered with an error."""

    def __init__(self, status: int, problem: Json, retry_after_s: float | None = None) -> None:
        self.status = status
        self.problem = problem
        self.retry_after_s = retry_after_s
        super().__init__("\n".join(_words(status, problem, retry_after_s)))

    @property
    def passing(self) -> bool:
        """Whether the same request may succeed in a moment."""
        return self.status in (429, 502, 503, 504)


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a job, numbered from 1."""

    seq: int
    event: str
    data: Json

    @property
    def status(self) -> str | None:
        """The state that a `state` event tells of."""
        value = self.data.get("status", self.data.get("state")) if self.event == "state" else None
        return None if value is None else str(value)

    @property
    def last(self) -> bool:
        """Whether nothing follows this event."""
        return self.status in TERMINAL


class Client:
    """Calls one Jarvis; raises NoServer when nothing answers and Refused when the answer is an error."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        loopback = urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")
        key = own_key.for_server(loopback)
        self._http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            trust_env=not loopback,  # a proxy of the environment cannot reach this machine's loopback
            verify=self.url.startswith("https:"),  # reading certificates takes time that plain HTTP need not
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def submit(self, body: Json, idempotency_key: str | None = None, file: Path | None = None) -> Json:
        """Submit a job, with the file that goes with it if there is one, and return its record.

        Asking again after a lost reply cannot make a second job.
        """
        headers = {"Idempotency-Key": json.dumps(idempotency_key or str(uuid.uuid4()))}
        content = json.dumps(body, allow_nan=False).encode()
        for attempt in range(1, SUBMIT_TRIES + 1):
            try:
                return self._upload(content, file, headers) if file else self._post(content, headers)
            except NoServer as error:
                if attempt == SUBMIT_TRIES or isinstance(error.__cause__, httpx.ConnectError):
                    raise
                time.sleep(PAUSE_FIRST_S * attempt)
        raise AssertionError("unreachable")

    def _post(self, content: bytes, headers: dict[str, str]) -> Json:
        return self._json("POST", "/v1/jobs", content=content, headers=headers | {"Content-Type": "application/json"})

    def _upload(self, content: bytes, file: Path, headers: dict[str, str]) -> Json:
        with file.open("rb") as opened:
            parts = {"job": (None, content, "application/json"), "file": (file.name, opened)}
            return self._json("POST", "/v1/jobs", files=parts, headers=headers, timeout=UPLOAD_TIMEOUT_S)

    def record(self, job_id: str) -> Json:
        """A job's record."""
        return self._json("GET", _job(job_id))

    def result(self, job_id: str) -> Json | None:
        """A job's result, or None while it is not there."""
        response = self._request("GET", f"{_job(job_id)}/result")
        document = self._document(response)
        return None if response.status_code == 202 else document

    def cancel(self, job_id: str) -> Json:
        """Ask for a job to stop; the record as it is then."""
        return self._json("POST", f"{_job(job_id)}/cancel")

    def retry(self, job_id: str) -> Json:
        """Run a finished job again, as a new one; its record."""
        return self._json("POST", f"{_job(job_id)}/retry")

    def jobs(self, **filters: str | int | None) -> Json:
        """One page of jobs."""
        return self._json("GET", "/v1/jobs", params=_given(filters))

    def queues(self) -> Json:
        """Every queue with its depth, workers and oldest wait."""
        return self._json("GET", "/v1/queues")

    def workers(self) -> Json:
        """Every live worker with its queue, slots and device."""
        return self._json("GET", "/v1/workers")

    def usage(self, **filters: str | int | None) -> Json:
        """What was used, grouped."""
        return self._json("GET", "/v1/usage", params={n: v for n, v in filters.items() if v is not None})

    def parked(self, **filters: str | int | None) -> Json:
        """One page of parked jobs."""
        return self._json("GET", "/v1/parked", params=_given(filters))

    def replay(self, parked_id: str) -> Json:
        """Run a parked job again, as a new one; its record."""
        return self._json("POST", f"/v1/parked/{quote(parked_id, safe='')}/replay")

    def follow(
        self,
        job_id: str,
        after: int = 0,
        notice: Callable[[str], None] = lambda _: None,
        patience_s: float = PATIENCE_S,
    ) -> Iterator[Event]:
        """Every event after number `after`, once and in order, to the last; rides over lost connections."""
        outage = _Outage(patience_s, notice)
        ended = False
        while True:
            before = after
            try:
                for event in self._stream(job_id, after, outage):
                    if event.seq > after:
                        after = event.seq
                        yield event
                    if event.last:
                        return
                # Closed in order, without the last event: the server stops, or had nothing more to tell.
                if ended and after == before:
                    return
                ended = self.record(job_id).get("status") in TERMINAL
                if not ended:
                    outage.wait("the connection was closed", after)
            except (NoServer, Refused) as error:
                outage.survive(error, after)

    def patiently(
        self,
        call: Callable[[], Answer],
        notice: Callable[[str], None] = lambda _: None,
        patience_s: float = PATIENCE_S,
    ) -> Answer:
        """Make a call until it is answered, riding over a server that is away for a while."""
        outage = _Outage(patience_s, notice)
        outage.over()  # it has answered before
        while True:
            try:
                return call()
            except (NoServer, Refused) as error:
                outage.survive(error)

    def _stream(self, job_id: str, after: int, outage: _Outage) -> Iterator[Event]:
        headers = {"Accept": "text/event-stream", "Accept-Encoding": "identity", "Cache-Control": "no-store"}
        if after:
            headers["Last-Event-ID"] = str(after)
        timeout = httpx.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S, read=SILENCE_S)
        try:
            with self._http.stream("GET", f"{_job(job_id)}/events", headers=headers, timeout=timeout) as response:
                if response.status_code == 204:  # nothing follows the last one
                    return
                if response.headers.get("content-type", "").partition(";")[0] != "text/event-stream":
                    response.read()
                    self._document(response)
                    raise NoServer(self.url, "something else answers there: no stream of events")
                outage.over()
                for event in events_of(response.iter_bytes()):
                    outage.pause_s = PAUSE_FIRST_S
                    yield event
        except httpx.TransportError as error:
            raise NoServer(self.url, _reason(error)) from error

    def _json(self, method: str, path: str, **options: Any) -> Json:
        return self._document(self._request(method, path, **options))

    def _request(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            return self._http.request(method, path, **options)
        except httpx.TransportError as error:
            raise NoServer(self.url, _reason(error)) from error

    def _document(self, response: httpx.Response) -> Json:
        try:
            document = response.json()
        except ValueError:
            document = None
        if response.is_success and isinstance(document, dict):
            return document
        if isinstance(document, dict):
            raise Refused(response.status_code, _problem(response, document), _retry_after(response))
        if response.status_code in (502, 503, 504):
            raise Refused(response.status_code, {"title": response.reason_phrase}, _retry_after(response))
        kind = response.headers.get("content-type", "no content type")
        raise NoServer(self.url, f"something else answers there: {response.status_code}, {kind}")


class _Outage:
    """Counts how long the stream has been away: says so once, waits longer each time, gives up in the end."""

    def __init__(self, patience_s: float, notice: Callable[[str], None]) -> None:
        self.patience_s = patience_s
        self.notice = notice
        self.connected = False
        self.since: float | None = None
        self.pause_s = PAUSE_FIRST_S

    def over(self) -> None:
        if self.since is not None:
            self.notice("connected again")
        self.connected, self.since = True, None

    def survive(self, error: NoServer | Refused, after: int = 0) -> None:
        """Wait for a moment, or raise the error when waiting cannot help."""
        if isinstance(error, NoServer):
            if not self.connected:
                raise error
            return self.wait(error.reason, after, error)
        if not error.passing:
            raise error
        return self.wait(_line(error), after, error, error.retry_after_s or 0)

    def wait(self, why: str, after: int, error: Exception | None = None, at_least_s: float = 0) -> None:
        now = time.monotonic()
        if self.since is None:
            self.since = now
            self.notice(f"{why}; trying again" + (f", from event {after + 1} on" if after else ""))
        elif now - self.since > self.patience_s and error is not None:
            raise error
        time.sleep(max(at_least_s, self.pause_s * random.uniform(0.8, 1.2)))
        self.pause_s = min(self.pause_s * 2, PAUSE_LAST_S)


def events_of(chunks: Iterable[bytes]) -> Iterator[Event]:
    """Read a stream of server-sent events; one that did not come whole is not there."""
    fields: dict[str, list[str]] = {}
    for line in _lines(chunks):
        if not line:
            event = _event(fields)
            fields = {}
            if event is not None:
                yield event
        elif not line.startswith(":"):
            name, _, value = line.partition(":")
            fields.setdefault(name, []).append(value.removeprefix(" "))


def _event(fields: dict[str, list[str]]) -> Event | None:
    if "id" not in fields or "data" not in fields:
        return None
    data = json.loads("\n".join(fields["data"]))
    return Event(int(fields["id"][-1]), fields.get("event", ["message"])[-1], data)


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    # Not str.splitlines: JSON may hold U+2028 and its like unescaped, and they end no line here.
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line.removesuffix(b"\r").decode()


def _words(status: int, problem: Json, retry_after_s: float | None) -> Iterator[str]:
    yield f"refused: {problem.get('title') or 'error'} ({status})"
    details = [_field_words(entry) for entry in problem.get("errors") or [] if isinstance(entry, dict)]
    reason = str(problem.get("detail") or "the server gave no reason")
    yield from (f"  {detail}" for detail in details or [reason])
    if retry_after_s is not None:
        yield f"  try again in {retry_after_s:g} s"


def _field_words(entry: Json) -> str:
    field, message = str(entry.get("field", "request")), str(entry.get("message", ""))
    if entry.get("value") is None or message.startswith(field):
        return f"{field}: {message}" if message and not message.startswith(field) else message or field
    value = entry["value"]
    shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"{field} is {shown}; {message}" if message else f"{field} is {shown}"


def _problem(response: httpx.Response, document: Json) -> Json:
    error = document.get("error")
    if not isinstance(error, dict):
        return document
    # OpenAI's addresses have OpenAI's errors.
    problem = {"title": response.reason_phrase, "detail": error.get("message")}
    return problem | {name: error[name] for name in ("param", "code") if error.get(name)}


def _retry_after(response: httpx.Response) -> float | None:
    text = response.headers.get("retry-after", "")
    return float(text) if text.isdigit() else None


def _reason(error: httpx.TransportError) -> str:
    return {
        httpx.ConnectError: "connection refused",
        httpx.ConnectTimeout: "no answer in time",
        httpx.ReadTimeout: "no answer in time",
    }.get(type(error), "the connection was lost")


def _line(error: Refused) -> str:
    return str(error.problem.get("detail") or error.problem.get("title") or f"error {error.status}")


def _job(job_id: str) -> str:
    return f"/v1/jobs/{quote(job_id, safe='')}"


def _given(filters: dict[str, str | int | None]) -> dict[str, str | int]:
    return {name: value for name, value in filters.items() if value is not None}

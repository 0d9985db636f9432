"""A response's events, made of its job's. The same job's events always make the same ones with the same numbers, in
whichever process and however often: that is what resuming rests on."""

from __future__ import annotations

from typing import Any

import msgspec

from common.errors import JarvisError
from common.jobs import JobEvent, JobRecord
from common.results import StoredResult
from producer.follow import escaped
from producer.openai.responses import answered
from producer.openai.responses.items import Item

FINAL = {"completed": "response.completed", "incomplete": "response.incomplete"}


class EventsGone(JarvisError):
    """The first events of this response are not kept any more: it was longer than what is kept of any."""


class ResponseEvents:
    """Takes a job's events from the first one; gives those of the response that come after number `after`."""

    def __init__(self, record: JobRecord, front: dict[str, Any], after: int = -1) -> None:
        self._record = record
        self._front = front
        self._after = after
        self._number = 0  # of the next event
        self._seen = 0  # number of the job's last event
        self._out: list[bytes] = []
        self._begun = False
        self._short = answered.short_of(record.id)
        self._growing: list[_Growing] = []  # by output index
        self._reasoning: _Growing | None = None
        self._text: _Growing | None = None
        self._calls: list[_Growing] = []
        self._untold: list[Any] = []  # log probabilities

    def take(self, event: JobEvent) -> bytes:
        """What a job's event adds. Raises EventsGone when one before it is missing."""
        if event.seq != self._seen + 1:
            raise EventsGone
        self._seen = event.seq
        if event.event == "token":
            self._take_tokens(event.data)
        elif event.event == "state":
            self._take_state(event.data["status"])
        return self._given()

    def end(self, found: StoredResult) -> bytes:
        """What comes last, of a job that has ended."""
        whole = answered.response(found, self._front)
        if whole["status"] in FINAL:
            self._close_all(whole["output"])
        self._add(FINAL.get(whole["status"], "response.failed"), response=whole)
        return self._given()

    def broken(self, code: str, message: str) -> bytes:
        """What comes when there can be no other end."""
        self._after = -1
        self._add("error", code=code, message=message, param=None)
        return self._given()

    # -- states

    def _take_state(self, status: str) -> None:
        background = self._front["response"]["background"]
        if self._seen == 1:
            self._tell("response.created", "queued" if background else "in_progress")
            if background:
                self._tell("response.queued", "queued")
        elif status == "in_progress" and not self._begun:
            self._begun = True
            self._tell("response.in_progress", "in_progress")

    def _tell(self, kind: str, status: str) -> None:
        self._add(kind, response=answered.snapshot(self._record, self._front, status))

    # -- tokens

    def _take_tokens(self, data: dict[str, Any]) -> None:
        if data.get("reasoning"):
            self._take_reasoning(data["reasoning"])
        self._untold += data.get("logprobs") or []
        if data["text"] or (self._text and self._untold):
            self._take_text(data["text"])
        for piece in data.get("tool_calls") or []:
            self._take_call(piece)

    def _take_reasoning(self, text: str) -> None:
        growing = self._reasoning or self._open_reasoning()
        growing.take(text)
        self._add("response.reasoning_text.delta", **growing.place, content_index=0, delta=text)

    def _open_reasoning(self) -> _Growing:
        self._reasoning = self._opened(answered.reasoning(self._short, "", "in_progress") | {"content": []})
        self._add_part("response.content_part.added", self._reasoning, answered.thought(""))
        return self._reasoning

    def _take_text(self, text: str) -> None:
        # Log probabilities of tokens without a text, such as one that only begins an answer, go with the next text.
        growing = self._text or self._open_text()
        logprobs, self._untold = self._untold, []
        self._add("response.output_text.delta", **growing.place, content_index=0, delta=text, logprobs=logprobs)

    def _open_text(self) -> _Growing:
        self._close_reasoning()
        self._text = self._opened(answered.message(self._short, "", [], "in_progress") | {"content": []})
        self._add_part("response.content_part.added", self._text, answered.text_part("", []))
        return self._text

    def _take_call(self, piece: dict[str, Any]) -> None:
        arguments = piece["function"].get("arguments") or ""
        if piece["index"] >= len(self._calls):
            self._close_reasoning()
            if self._calls:
                self._close_call(self._calls[-1])
            function = {"name": piece["function"].get("name", ""), "arguments": ""}
            item = answered.call(self._short, len(self._calls), piece["id"], function, "in_progress")
            self._calls.append(self._opened(item))
        growing = self._calls[piece["index"]]
        growing.take(arguments)
        if arguments:
            self._add("response.function_call_arguments.delta", **growing.place, delta=arguments)

    # -- items

    def _opened(self, item: Item) -> _Growing:
        growing = _Growing(item, len(self._growing))
        self._growing.append(growing)
        self._add("response.output_item.added", output_index=growing.index, item=item)
        return growing

    def _close_reasoning(self) -> None:
        growing = self._reasoning
        if growing is not None and not growing.closed:
            self._close(growing, answered.reasoning(self._short, growing.text))

    def _close_call(self, growing: _Growing) -> None:
        if not growing.closed:
            self._close(growing, growing.item | {"arguments": growing.text, "status": "completed"})

    def _close_all(self, items: list[Item]) -> None:
        whole = {item["id"]: item for item in items}
        if f"msg_{self._short}" in whole and self._text is None:  # an empty one
            self._open_text()
        for growing in self._growing:
            if not growing.closed:
                self._close(growing, whole[growing.item["id"]])
        places = {growing.item["id"]: growing.index for growing in self._growing}
        items.sort(key=lambda item: places[item["id"]])

    def _close(self, growing: _Growing, item: Item) -> None:
        growing.closed = True
        place = growing.place
        if item["type"] == "function_call":
            name, arguments = item["name"], item["arguments"]
            self._add("response.function_call_arguments.done", **place, name=name, arguments=arguments)
        else:
            [part] = item["content"]
            text = {"text": part["text"]}
            if item["type"] == "message":
                self._add("response.output_text.done", **place, content_index=0, **text, logprobs=part["logprobs"])
            else:
                self._add("response.reasoning_text.done", **place, content_index=0, **text)
            self._add_part("response.content_part.done", growing, part)
        self._add("response.output_item.done", output_index=growing.index, item=item)

    def _add_part(self, kind: str, growing: _Growing, part: dict[str, Any]) -> None:
        self._add(kind, **growing.place, content_index=0, part=part)

    # -- the wire

    def _add(self, kind: str, **members: Any) -> None:
        number = self._number
        self._number += 1
        if number <= self._after:
            return
        data = escaped(msgspec.json.encode({"type": kind, "sequence_number": number, **members}))
        self._out.append(b"id: %d\nevent: %s\ndata: %s\n\n" % (number, kind.encode(), data))

    def _given(self) -> bytes:
        out, self._out = self._out, []
        return b"".join(out)


class _Growing:
    """An item that is being told."""

    def __init__(self, item: Item, index: int) -> None:
        self.item = item
        self.index = index
        self.place = {"item_id": item["id"], "output_index": index}
        self.closed = False
        self._texts: list[str] = []

    def take(self, text: str) -> None:
        """Add a piece."""
        self._texts.append(text)

    @property
    def text(self) -> str:
        """All of it so far."""
        return "".join(self._texts)

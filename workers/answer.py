"""An answer as it grows out of an engine's deltas, from where an earlier delivery left it.

What a delivery has emitted is a commitment: an answer that goes on in another delivery starts with the texts,
reasoning, tool calls and log probabilities of its token events, and never takes any of them back.
"""

from __future__ import annotations

from typing import Any

from common.jobs import JobResult
from workers.engines.protocol import FinishReason, GenerationDelta

DEFAULT_MAX_TOKENS = 256


class Answer:
    """A text, cut at a stop string."""

    def __init__(self, params: dict[str, Any], emitted: list[dict[str, Any]]) -> None:
        self.max_tokens: int = params.get("max_tokens") or DEFAULT_MAX_TOKENS
        self.finish_reason: FinishReason | None = None
        self.resumed_text = "".join(event["text"] for event in emitted)
        # An upstream tells no ids: what it began is known by its text alone.
        known = all("ids" in event for event in emitted)
        self.resumed_ids = [token for event in emitted for token in event["ids"]] if known else []
        stop = params.get("stop") or []
        self.stop: list[str] = [stop] if isinstance(stop, str) else stop
        self._texts = [self.resumed_text]
        self.resuming = bool(self.resumed_text or self.resumed_ids)
        self._stop = StopStrings(self.stop)
        self._ids: list[int] = []
        self._prompt_tokens = 0
        self._completion_tokens = len(self.resumed_ids)
        self._usage: dict[str, int] | None = None

    def take(self, delta: GenerationDelta) -> dict[str, Any] | None:
        """Add one step; returns the event of what can be shown now.

        The ids of tokens without text go along with the next text. An upstream tells no ids.
        """
        text = self._shown(delta)
        if not text:
            return None
        if self._usage is not None:
            return {"text": text}
        ids, self._ids = self._ids, []
        return {"text": text, "ids": ids}

    @property
    def alone(self) -> bool:
        """Whether it is all that its job answers."""
        return True

    @property
    def plain(self) -> bool:
        """Whether it is the same however many tokens come together; a stop string must be seen at its last token."""
        return not self.stop

    @property
    def output(self) -> dict[str, Any]:
        """What the job's result says of this answer."""
        return {"text": "".join(self._texts), "finish_reason": self.finish_reason}

    @property
    def usage(self) -> dict[str, int]:
        """Tokens in and out; of an upstream its own count, if it said one."""
        if self._usage is not None:
            return self._usage
        return {"prompt_tokens": self._prompt_tokens, "completion_tokens": self._completion_tokens}

    @property
    def cut(self) -> bool:
        """Whether the model's context ended it before the caller's limit."""
        return self.finish_reason == "length" and self.usage.get("completion_tokens", self.max_tokens) < self.max_tokens

    def _shown(self, delta: GenerationDelta) -> str:
        self._prompt_tokens = delta.prompt_tokens
        self._usage = delta.usage
        self._completion_tokens += len(delta.token_ids)
        self._ids += delta.token_ids
        text = self._stop.pass_on(delta.text, last=delta.finish_reason is not None)
        self.finish_reason = "stop" if self._stop.met else delta.finish_reason
        if self.resuming:
            # The first delta repeats what was given away. It can reach further than what was shown: the earlier
            # delivery may have held back the start of a stop string.
            self.resuming = False
            text = _beyond(self._texts[0], text)
        self._texts.append(text)
        return text


class DetailedAnswer(Answer):
    """An answer with more to it than text: one of several, reasoning, tool calls, log probabilities.

    `index` is its number among the answers of a job that asked for more than one; all its events carry it. Stop strings
    end its text; they are not looked for in reasoning and tool calls.
    """

    def __init__(self, params: dict[str, Any], emitted: list[dict[str, Any]], index: int | None = None) -> None:
        super().__init__(params, [event for event in emitted if event.get("index") == index])
        ours = [event for event in emitted if event.get("index") == index]
        self._index = index
        self._reasoning = ["".join(event.get("reasoning", "") for event in ours)]
        self._calls = ToolCalls()
        for event in ours:
            self._calls.add(event.get("tool_calls", []))
        self.resuming = self.resuming or bool(self._calls.whole)
        self._told: list[dict[str, Any]] | None = None  # logprobs of tokens that are told already
        self._untold: list[dict[str, Any]] = []
        if params.get("logprobs"):
            self._told = [entry for event in ours for entry in event.get("logprobs", [])]

    def take(self, delta: GenerationDelta) -> dict[str, Any] | None:
        """Add one step; returns the event of what can be shown now, its text perhaps empty."""
        event = self._details(delta, self.resuming)
        text = self._shown(delta)
        self._untold += delta.logprobs or []
        # The last tokens may have no text (an end token), but their log probabilities are part of the answer.
        last = self.finish_reason is not None and bool(self._untold)
        if not (text or event or last):
            return None
        event |= {"text": text, "ids": self._ids}
        self._ids = []
        if self._told is not None:
            event["logprobs"] = self._untold
            self._told += self._untold
            self._untold = []
        if self._index is not None:
            event["index"] = self._index
        return event

    @property
    def alone(self) -> bool:
        """Whether it is all that its job answers."""
        return self._index is None

    @property
    def plain(self) -> bool:
        """Never: its details belong to tokens."""
        return False

    @property
    def output(self) -> dict[str, Any]:
        """What the job's result says of this answer."""
        output = super().output
        if reasoning := "".join(self._reasoning):
            output["reasoning"] = reasoning
        if self._calls.whole:
            output["tool_calls"] = self._calls.whole
        if self._told is not None:
            output["logprobs"] = self._told
        return output

    def _details(self, delta: GenerationDelta, replayed: bool) -> dict[str, Any]:
        reasoning, calls = delta.reasoning, delta.tool_calls or []
        if replayed:
            reasoning, calls = _beyond(self._reasoning[0], reasoning), self._calls.beyond(calls)
        self._reasoning.append(reasoning)
        self._calls.add(calls)
        details: dict[str, Any] = {"reasoning": reasoning} if reasoning else {}
        return details | ({"tool_calls": calls} if calls else {})


class ToolCalls:
    """Tool calls put together from their pieces."""

    def __init__(self) -> None:
        self.whole: list[dict[str, Any]] = []

    def add(self, pieces: list[dict[str, Any]]) -> None:
        """Add pieces in their order."""
        for piece in pieces:
            if piece["index"] >= len(self.whole):
                function = {"name": piece["function"].get("name", ""), "arguments": ""}
                self.whole.append({"id": piece["id"], "type": "function", "function": function})
            self.whole[piece["index"]]["function"]["arguments"] += piece["function"]["arguments"]

    def beyond(self, replayed: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """What a replay of these calls from their beginning says more than they do."""
        whole = ToolCalls()
        whole.add(replayed)
        pieces = []
        for index, call in enumerate(whole.whole):
            function = call["function"]
            if index >= len(self.whole):
                pieces.append({"index": index, **call})
            elif rest := _beyond(self.whole[index]["function"]["arguments"], function["arguments"]):
                pieces.append({"index": index, "function": {"arguments": rest}})
        return pieces


def result(answers: list[Answer]) -> JobResult:
    """The result of a job: its answer, or the first of several with all of them as `choices`.

    Incomplete when the model's context cut one of them.
    """
    usage = dict(answers[0].usage)
    for answer in answers[1:]:
        usage["completion_tokens"] += answer.usage["completion_tokens"]
    if usage:
        usage["total_tokens"] = sum(usage.values())
    output = answers[0].output
    if len(answers) > 1:
        choices = [{"index": index, **answer.output} for index, answer in enumerate(answers)]
        output = {"text": output["text"], "finish_reason": output["finish_reason"], "choices": choices}
    return JobResult(output, {**usage}, incomplete=any(answer.cut for answer in answers))


class StopStrings:
    """Passes text on until a stop string comes, holding back only what may be the beginning of one."""

    def __init__(self, stop: str | list[str]) -> None:
        self.met = False
        self._stop = [stop] if isinstance(stop, str) else stop
        self._longest = max(map(len, self._stop), default=0)
        self._held = ""

    def pass_on(self, text: str, last: bool) -> str:
        """The text that is certainly before any stop string; with `last`, everything that is left."""
        if not self._stop:
            return text
        text = self._held + text
        ends = [(found + len(stop), found) for stop in self._stop if (found := text.find(stop)) >= 0]
        if ends:
            self.met, self._held = True, ""
            # The one that is complete first wins, as if the text had come character by character.
            return text[: min(ends)[1]]
        held = 0 if last else self._possible_start(text)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def _possible_start(self, text: str) -> int:
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop):
                return length
        return 0


def _beyond(shown: str, replayed: str) -> str:
    return replayed[len(shown) :] if replayed.startswith(shown) else ""

"""What a call of a hosted model costs: the catalogue's prices times what the upstream says it has counted.

Amounts are whole millionths of the currency's unit, so that they add up: a price per million tokens, times
tokens, is millionths.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from common.jobs import JobResult, Usage


@dataclass(frozen=True, slots=True)
class Cost:
    """Prices of one model."""

    currency: str = ""  # three capitals; the catalogue insists on it
    input: float = 0.0  # per million tokens of prompt, or of embedded text
    output: float = 0.0  # per million tokens of answer
    audio_minute: float = 0.0

    def of(self, usage: Usage) -> Usage:
        """The usage with its cost; as it is when the upstream did not say what it has counted."""
        prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens", 0)
        seconds = usage.get("audio_seconds", 0)
        if prompt is None and not seconds:
            return usage
        tokens = self.input * float(prompt or 0) + self.output * float(completion)
        micros = tokens + self.audio_minute * float(seconds) / 60 * 1_000_000
        return {**usage, "cost_micros": round(micros), "cost_currency": self.currency}


def priced(cost: Cost | None, result: JobResult) -> JobResult:
    """A result with what it cost, if its model costs anything."""
    return msgspec.structs.replace(result, usage=cost.of(result.usage)) if cost else result

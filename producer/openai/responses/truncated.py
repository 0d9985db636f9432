"""`truncation: auto`: a conversation that is too long for its model loses its oldest turns.

Tokens are counted as `prompt.py` counts them, a lower bound, so some room is left for what a chat template adds. Where
that is too little, or the model's tokenizer is not on this machine, the engine refuses the prompt as it does any other.
"""

from __future__ import annotations

from typing import Any

from common.catalogue import Model
from producer.conversation import texts
from producer.prompt import Prompts

Turn = dict[str, Any]

TURN_TOKENS = 8  # what a chat template adds to a turn
MOST_ANSWER = 1024  # room for an answer that says no length, or a quarter of the model's where that is less


async def fitting(turns: list[Turn], model: Model, max_tokens: int | None, prompts: Prompts) -> list[Turn]:
    """The turns without the oldest, so that they fit; system messages and the last turn stay."""
    room = model.max_model_len - (max_tokens or min(MOST_ANSWER, model.max_model_len // 4))
    sizes = [await _size(turn, model, prompts) for turn in turns]
    excess = sum(sizes) - room
    gone: set[int] = set()
    for place, turn in enumerate(turns[:-1]):
        # What a tool answered means nothing without the call, so it goes with that.
        if excess <= 0 and not (turn["role"] == "tool" and gone and _first_left(turns, gone) == place):
            continue
        if turn["role"] != "system":
            gone.add(place)
            excess -= sizes[place]
    return [turn for place, turn in enumerate(turns) if place not in gone]


def _first_left(turns: list[Turn], gone: set[int]) -> int:
    return next(place for place, turn in enumerate(turns) if turn["role"] != "system" and place not in gone)


async def _size(turn: Turn, model: Model, prompts: Prompts) -> int:
    said = texts(turn.get("content"))
    called = [call["function"]["arguments"] for call in turn.get("tool_calls", [])]
    return TURN_TOKENS + (await prompts.count(model, said + called) if said + called else 0)

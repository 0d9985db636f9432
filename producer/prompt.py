"""How many tokens a prompt has, so that one that cannot fit its model is refused before it is queued.

A count is a lower bound where it is not exact (the chat template's own tokens, a model whose tokenizer is not
on this machine): nothing that fits is ever refused here, and what slips through is refused by the engine.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.catalogue import Model
from common.errors import InvalidField, SettingsInvalid
from common.model import HUB_ID
from producer.conversation import texts

if TYPE_CHECKING:
    from tokenizers import Tokenizer

THREAD_CHARACTERS = 20_000  # more than this takes longer than 5 ms, so it is counted beside the event loop
CHARACTERS_PER_TOKEN = 64  # no tokenizer packs more into a token on average; only runs of spaces come near it
LOOK_EVERY_S = 5.0
NOT_BYTES = 8  # tokens that a tokenizer adds by itself, at most


class Prompts:
    """Counts tokens with the models' own tokenizers, each loaded once, when it is first needed."""

    def __init__(self) -> None:
        self._tokenizers: dict[str, Tokenizer] = {}
        self._look_at: dict[str, float] = {}  # when to look again for one that was not there
        # Long prompts wait for each other: together they would take every core from the short ones.
        self._one_long = asyncio.Semaphore(1)

    async def check(self, model: Model, asked: dict[str, Any], max_tokens: int | None) -> None:
        """Raise InvalidField when the prompt and `max_tokens` cannot fit the model."""
        room = model.max_model_len
        if max_tokens is not None and max_tokens >= room:
            raise InvalidField("params.max_tokens", max_tokens, f"1 to {room - 1} for the model {model.alias}")
        field, given = ("input.prompt", [asked["prompt"]]) if "prompt" in asked else _contents(asked)
        if _surely_fits(given, room - (max_tokens or 1)):
            return
        count = await self.count(model, given)
        if count >= room:
            raise InvalidField(
                field, f"{count} tokens or more", f"at most {room - 1} tokens for the model {model.alias}"
            )
        if max_tokens is not None and count + max_tokens > room:
            reason = f"the prompt has {count} of the {room} tokens of the model {model.alias}"
            raise InvalidField("params.max_tokens", max_tokens, f"1 to {room - count}: {reason}")

    async def check_texts(self, model: Model, texts: list[str]) -> None:
        """Raise InvalidField for the first text to embed that cannot fit the model."""
        for index, text in enumerate(texts):
            if _surely_fits([text], model.max_model_len):
                continue
            count = await self.count(model, [text])
            if count > model.max_model_len:
                allowed = f"at most {model.max_model_len} tokens for the model {model.alias}, or params.truncate = true"
                raise InvalidField(f"input.texts[{index}]", f"{count} tokens or more", allowed)

    async def count(self, model: Model, texts: list[str]) -> int:
        """Tokens of texts, or a number that is certainly not more than that."""
        exact = await self.exact(model, texts)
        return sum(map(len, texts)) // CHARACTERS_PER_TOKEN if exact is None else exact

    async def exact(self, model: Model, texts: list[str], special: bool = False) -> int | None:
        """Tokens of texts; None where its tokenizer is not there, or they are far too long.

        With `special` each text has the special tokens of a prompt.
        """
        characters = sum(map(len, texts))
        if characters > model.max_model_len * CHARACTERS_PER_TOKEN:
            return None
        if model.alias not in self._tokenizers and time.monotonic() >= self._look_at.get(model.alias, 0.0):
            self._look_at[model.alias] = time.monotonic() + LOOK_EVERY_S
            async with self._one_long:
                await asyncio.to_thread(self._load, model)
        tokenizer = self._tokenizers.get(model.alias)
        if tokenizer is None:
            return None
        special = special or len(texts) == 1
        if characters <= THREAD_CHARACTERS:
            return _count(tokenizer, texts, special)
        async with self._one_long:
            return await asyncio.to_thread(_count, tokenizer, texts, special)

    def _load(self, model: Model) -> None:
        path = _tokenizer_file(model)
        if path is not None and model.alias not in self._tokenizers:
            from tokenizers import (
                Tokenizer,
            )  # late: 60 ms and 30 MB that a web process without prompts never needs

            tokenizer = Tokenizer.from_file(str(path))
            tokenizer.no_truncation()
            tokenizer.no_padding()
            self._tokenizers[model.alias] = tokenizer


def _surely_fits(texts: list[str], room: int) -> bool:
    # A token covers at least one byte, and ASCII cannot grow by normalization.
    return all(map(str.isascii, texts)) and sum(map(len, texts)) + NOT_BYTES * len(texts) <= room


def _contents(asked: dict[str, Any]) -> tuple[str, list[str]]:
    return "input.messages", [text for message in asked["messages"] for text in texts(message.get("content"))]


def _count(tokenizer: Tokenizer, texts: list[str], special: bool) -> int:
    # A prompt's special tokens count; those of a conversation are its template's, which is not applied here.
    return sum(len(tokenizer.encode(text, add_special_tokens=special).ids) for text in texts)


def _tokenizer_file(model: Model) -> Path | None:
    # Looked for anew each time until it is there: the weights may come after the web process has started.
    if model.engine == "openai" and not HUB_ID.match(model.weights):
        return None  # a name at the upstream, which says nothing about this machine
    try:
        source = model.tokenizer_path()
    except SettingsInvalid:
        return None
    if HUB_ID.match(source):
        path = _from_hub_cache(source, None if model.tokenizer else model.revision)
    else:
        path = Path(source) / "tokenizer.json"
    return path if path is not None and path.is_file() else None


def _from_hub_cache(hub_id: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub_id, "tokenizer.json", revision=revision)
    return Path(found) if isinstance(found, str) else None

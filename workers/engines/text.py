"""Texts as a model's tokens: read once, cut at its length, and counted whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer


@dataclass(frozen=True, slots=True)
class Text:
    """One text: the tokens that the model reads (`ids`), and how many it would have uncut."""

    ids: list[int]
    tokens: int


class TextReader:
    """A tokenizer that cuts at `limit` tokens and says what it cut. Takes the tokenizer for itself: it changes it."""

    def __init__(self, tokenizer: Tokenizer, limit: int) -> None:
        self.limit = limit
        self._special = tokenizer.num_special_tokens_to_add(False)
        tokenizer.no_padding()
        tokenizer.enable_truncation(limit)
        self._tokenizer = tokenizer

    def read(self, texts: list[str]) -> list[Text]:
        """The texts in order. Raises TypeError or ValueError for one that is no text."""
        return [self._text(one) for one in self._tokenizer.encode_batch_fast(texts)]

    def _text(self, one: Encoding) -> Text:
        # What was cut comes in pieces, each with special tokens of its own.
        ids = one.ids
        if len(ids) < self.limit:
            return Text(ids, len(ids))
        return Text(ids, len(ids) + sum(len(piece.ids) - self._special for piece in one.overflowing))

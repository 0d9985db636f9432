"""Speculative decoding, as a catalogue entry asks for it: something cheap guesses tokens, the model checks them.

`ngram` guesses what followed the same words earlier in the text; `draft_model` asks a small model with the same
vocabulary. The answers are the model's own either way.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common.errors import SettingsInvalid, shown

FIELDS: dict[str, type] = {
    "method": str,
    "model": str,
    "num_speculative_tokens": int,
    "prompt_lookup_min": int,
    "prompt_lookup_max": int,
    "draft_tensor_parallel_size": int,
}
ALLOWED = {
    "ngram": ("num_speculative_tokens", "prompt_lookup_min", "prompt_lookup_max"),
    "draft_model": ("model", "num_speculative_tokens", "draft_tensor_parallel_size"),
}
NEEDED = {"ngram": ("num_speculative_tokens",), "draft_model": ("model", "num_speculative_tokens")}


def contradiction(table: dict[str, Any]) -> tuple[str, str] | None:
    """What is wrong with a table whose keys and types are right: the key and the reason; None if nothing is."""
    method = table.get("method")
    if method not in ALLOWED:
        return "method", f"method is {shown(method)}; allowed: {', '.join(ALLOWED)}"
    for key in NEEDED[method]:
        if not table.get(key):
            return key, f"{key} is missing: method {method} needs it"
    for key, value in table.items():
        if key != "method" and key not in ALLOWED[method]:
            return key, f"{key} has no meaning for method {method}; allowed: {', '.join(ALLOWED[method])}"
        if isinstance(value, int) and value < 1:
            return key, f"{key} is {value}; allowed: 1 or more"
    if table.get("prompt_lookup_min", 1) > table.get("prompt_lookup_max", table.get("prompt_lookup_min", 1)):
        return "prompt_lookup_min", "prompt_lookup_min is more than prompt_lookup_max"
    return None


def check_vocabulary(place: str, model_path: str, draft_path: str) -> None:
    """Raise SettingsInvalid when both sizes are known and differ: a guess must be a token of the model."""
    sizes = [_vocabulary(model_path), _vocabulary(draft_path)]
    if None not in sizes and sizes[0] != sizes[1]:
        raise SettingsInvalid(
            f"{place}: speculative: the draft model has {sizes[1]} tokens, the model {sizes[0]}:"
            " both must have the same vocabulary"
        )


def _vocabulary(path: str) -> int | None:
    file = Path(path) / "config.json"
    if not file.is_file():  # a hub's: vLLM compares them once it has them
        return None
    size = json.loads(file.read_text()).get("vocab_size")
    return size if isinstance(size, int) else None

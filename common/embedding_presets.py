"""Presets of embedding models: what their authors say of length, vectors and prompts, under one name.

`keys` are keys of a catalogue entry; what the entry says itself wins. `vector_size` and `pooling` are those of the
weights: a worker compares them with what it loads, so that no other model's weights run under a preset's prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True, slots=True)
class EmbeddingPreset:
    """One model, as its card describes it."""

    keys: Mapping[str, Any]
    vector_size: int
    pooling: str
    remote_code: bool = False  # torch loads it only with Python code from its repository


EMBEDDING_PRESETS = MappingProxyType[str, EmbeddingPreset](
    {
        "minilm": EmbeddingPreset(
            {"weights": "sentence-transformers/all-MiniLM-L6-v2", "max_model_len": 256},
            vector_size=384,
            pooling="mean",
        ),
        "e5-small-v2": EmbeddingPreset(
            {
                "weights": "intfloat/e5-small-v2",
                "max_model_len": 512,
                "prompts": {"query": "query: ", "passage": "passage: "},
                # Trained with one of the two before every text; for texts that are all of one sort it is this one.
                "default_prompt": "query",
                "defaults": {"normalize": True},
            },
            vector_size=384,
            pooling="mean",
        ),
        "bge-small-en-v1.5": EmbeddingPreset(
            {
                "weights": "BAAI/bge-small-en-v1.5",
                "max_model_len": 512,
                # Only short questions that look for long passages are prompted.
                "prompts": {"query": "Represent this sentence for searching relevant passages: ", "passage": ""},
                "defaults": {"normalize": True},
            },
            vector_size=384,
            pooling="cls",
        ),
        "bge-m3": EmbeddingPreset(
            {"weights": "BAAI/bge-m3", "max_model_len": 8192, "defaults": {"normalize": True}},
            vector_size=1024,
            pooling="cls",
        ),
        "jina-embeddings-v2-small": EmbeddingPreset(
            {
                "weights": "jinaai/jina-embeddings-v2-small-en",
                "max_model_len": 8192,
                "defaults": {"normalize": True},
            },
            vector_size=512,
            pooling="mean",
            remote_code=True,
        ),
    }
)


def with_preset(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry with what its embedding preset adds; one without such a preset as it is."""
    preset = EMBEDDING_PRESETS.get(str(entry.get("preset")))
    if preset is None or entry.get("kind") != "embedding":
        return entry
    added = dict(preset.keys)
    if "prompts" in entry:  # the preset's default is one of the preset's own prompts
        added.pop("default_prompt", None)
    if isinstance(entry.get("defaults"), dict):
        added["defaults"] = {**added.get("defaults", {}), **entry["defaults"]}
        entry = {key: value for key, value in entry.items() if key != "defaults"}
    return {**added, **entry}

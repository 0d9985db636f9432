"""Writes a Whisper with random weights in CTranslate2's format: it loads and works like any, and understands nothing.

Its vocabulary is laid out like the real one (50,257 words, then Whisper's own tokens), so that languages, tasks and
time stamps are what they are in a real model. No hub is needed, and no PyTorch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common.languages import LANGUAGES

MELS = 80
FRAMES, TOKENS = 1500, 448  # positions of the encoder and of the decoder
WORDS = 50_257
SPECIAL = [
    "<|endoftext|>",
    "<|startoftranscript|>",
    *(f"<|{code}|>" for code in LANGUAGES),
    "<|translate|>",
    "<|transcribe|>",
    "<|startoflm|>",
    "<|startofprev|>",
    "<|nospeech|>",
    "<|notimestamps|>",
]
STAMPS = [f"<|{number * 0.02:.2f}|>" for number in range(1501)]


def write_whisper(folder: Path, *, width: int = 64, layers: int = 2, spread: float = 0.2) -> Path:
    """A multilingual model with so many layers of this width (a multiple of 64); the same weights every time."""
    from ctranslate2.specs import WhisperSpec

    heads = width // 64
    spec = WhisperSpec(layers, heads, layers, heads)
    vocabulary = [*_words(), *SPECIAL, *STAMPS]
    _fill(spec, _Weights(width, len(vocabulary), spread))
    first = WORDS + 2
    spec.config.suppress_ids, spec.config.suppress_ids_begin = [], [WORDS]
    spec.config.lang_ids = list(range(first, first + len(LANGUAGES)))
    spec.config.alignment_heads = [(layer, head) for layer in range(layers // 2, layers) for head in range(heads)]
    spec.register_vocabulary(vocabulary)
    spec.validate()
    spec.optimize()
    folder.mkdir(parents=True, exist_ok=True)
    spec.save(str(folder))
    _write_tokenizer(folder)
    return folder


class _Weights:
    """Random arrays by the names that CTranslate2 gives them."""

    def __init__(self, width: int, vocabulary: int, spread: float) -> None:
        import numpy as np

        self._random = np.random.default_rng(1)
        self._spread = spread
        shapes = {
            "conv1.weight": (width, MELS, 3),
            "conv2.weight": (width, width, 3),
            "embeddings.weight": (vocabulary, width),
            "self_attention.linear0.weight": (3 * width, width),
            "attention.linear1.weight": (2 * width, width),
            "self_attention.linear1.weight": (width, width),
            "linear_0.weight": (4 * width, width),
            "linear_1.weight": (width, 4 * width),
            "encoder.position_encodings.encodings": (FRAMES, width),
            "decoder.position_encodings.encodings": (TOKENS, width),
            "linear0.weight": (width, width),
            "linear2.weight": (width, width),
        }
        # The longest name that fits decides: attention.linear1 is another thing than self_attention.linear1.
        self._shapes = sorted(shapes.items(), key=lambda item: -len(item[0]))
        self._width = width
        self._tied: Any = None

    def of(self, name: str) -> Any:
        """The array of this name; None for one that a Whisper does not need."""
        import numpy as np

        if name.endswith(("gamma", "beta")):
            return np.full(self._width, float(name.endswith("gamma")), np.float32)
        if name.endswith("projection.weight"):
            return self._tied
        shape = next((shape for known, shape in self._shapes if name.endswith(known)), None)
        if shape is None:
            return np.zeros(self._width, np.float32) if name.endswith(("conv1.bias", "conv2.bias")) else None
        made = (self._random.standard_normal(shape) * self._spread).astype(np.float32)
        if name.endswith("embeddings.weight"):
            self._tied = made
        return made


def _fill(spec: Any, weights: _Weights, path: str = "") -> None:
    from ctranslate2.specs.model_spec import OPTIONAL, LayerSpec

    for name, value in list(vars(spec).items()):
        inside = f"{path}.{name}"
        if isinstance(value, LayerSpec):
            _fill(value, weights, inside)
        elif isinstance(value, list):
            for number, layer in enumerate(value):
                _fill(layer, weights, f"{inside}{number}")
        elif (value is None or value is OPTIONAL) and (made := weights.of(inside)) is not None:
            setattr(spec, name, made)


def _words() -> list[str]:
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # The empty word is what CTranslate2 knows a multilingual Whisper by.
    return [*alphabet, *(f"Ġw{number}" for number in range(WORDS - len(alphabet) - 1)), ""]


def _write_tokenizer(folder: Path) -> None:
    added = [*SPECIAL, *STAMPS]
    tokens = [
        {"id": WORDS + number, "content": token, "special": token in SPECIAL}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for number, token in enumerate(added)
    ]
    bytes_as_letters = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    document = {
        "version": "1.0",
        "added_tokens": tokens,
        "pre_tokenizer": bytes_as_letters,
        "decoder": bytes_as_letters,
        "model": {"type": "BPE", "vocab": {word: number for number, word in enumerate(_words())}, "merges": []},
    }
    (folder / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")

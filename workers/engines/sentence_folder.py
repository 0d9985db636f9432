"""What a folder of sentence-transformers says of its model: pooling, normalisation, length, tokenizer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import SettingsInvalid

if TYPE_CHECKING:
    from tokenizers import Tokenizer

#: Poolings by sentence-transformers' names; a folder from before 6.0 has a switch for each.
SWITCHES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
KNOWN = ("mean", "cls", "max", "lasttoken")


@dataclass(frozen=True, slots=True)
class SentenceFolder:
    """One model's folder."""

    transformer: Path  # where config.json and tokenizer.json lie
    pooling: str
    pools_prompt: bool
    normalize: bool
    limit: int | None  # tokens of a text, as far as the folder says
    lower: bool
    pad_id: int

    @classmethod
    def read(cls, folder: Path, pooling: str | None = None) -> SentenceFolder:
        """Read one; `pooling` is for a folder that says none. Raises SettingsInvalid for what we cannot compute."""
        modules = _json(folder / "modules.json") or []
        kinds = {module["type"].rpartition(".")[2]: folder / module["path"] for module in modules}
        if others := [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")]:
            raise SettingsInvalid(f"{folder}: engine onnx computes no {', '.join(others)}; use sentence-transformers")
        settings = (_json(kinds["Pooling"] / "config.json") or {}) if "Pooling" in kinds else {}
        if "Pooling" in kinds:
            pooling = _pooling(settings)
        if pooling not in KNOWN:
            said = f"pooling {pooling}" if pooling else "no modules.json, so no pooling, and no preset is named"
            raise SettingsInvalid(f"{folder}: {said}; engine onnx computes {', '.join(KNOWN)}")
        where = kinds.get("Transformer", folder)
        reading = _json(where / "sentence_bert_config.json") or {}
        return cls(
            where,
            pooling,
            settings.get("include_prompt", True),
            "Normalize" in kinds,
            reading.get("max_seq_length") or _length(where),
            bool(reading.get("do_lower_case")),
            (_json(where / "config.json") or {}).get("pad_token_id") or 0,
        )

    def tokenizer(self) -> Tokenizer:
        """A tokenizer of its own; raises SettingsInvalid when there is none."""
        from tokenizers import Tokenizer, normalizers

        file = self.transformer / "tokenizer.json"
        if not file.is_file():
            raise SettingsInvalid(f"{self.transformer}: no tokenizer.json there")
        made = Tokenizer.from_file(str(file))
        if self.lower:
            steps = [normalizers.Lowercase(), *([made.normalizer] if made.normalizer else [])]
            made.normalizer = normalizers.Sequence(steps)
        return made


def _pooling(config: dict[str, Any]) -> str:
    mode = config.get("pooling_mode")
    modes = [mode] if isinstance(mode, str) else mode or [name for key, name in SWITCHES.items() if config.get(key)]
    return "+".join(modes) or "mean"


def _length(folder: Path) -> int | None:
    tokenizer, model = _json(folder / "tokenizer_config.json") or {}, _json(folder / "config.json") or {}
    lengths = tokenizer.get("model_max_length"), model.get("max_position_embeddings")
    return min((int(length) for length in lengths if length), default=None)


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise SettingsInvalid(f"{file} is not JSON: {error}") from None

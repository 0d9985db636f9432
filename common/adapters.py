"""LoRA adapters: small additions to a model's weights, each with an alias whose jobs the model's own workers run.

The catalogue names them; whether the folder fits is asked only by workers and checks, as with a model's weights.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from common.errors import SettingsInvalid, shown


@dataclass(frozen=True, slots=True)
class Adapter:
    """One entry of a model's `adapters`: its alias and the folder of its weights (PEFT's layout)."""

    alias: str
    folder: Path
    place: str  # file:line of the entry, for messages

    def rank(self, limit: int | None = None) -> int:
        """Its largest rank; raises SettingsInvalid when the folder holds no LoRA or the rank is above `limit`."""
        file = self.folder / "adapter_config.json"
        try:
            config = json.loads(file.read_text())
        except OSError:
            raise self._wrong(f"no adapter in {self.folder} (no adapter_config.json there)") from None
        except ValueError as error:
            raise self._wrong(f"{file} is not JSON: {error}") from None
        if not isinstance(config, dict) or config.get("peft_type") != "LORA":
            raise self._wrong(f"{file} describes no LoRA (peft_type must be LORA)")
        rank = _largest(config)
        if rank is None:
            raise self._wrong(f"{file}: r is {shown(config.get('r'))}; must be a whole number, 1 or more")
        if limit is not None and rank > limit:
            raise self._wrong(f"its rank is {rank}, max_lora_rank in options is {limit}")
        return rank

    def _wrong(self, message: str) -> SettingsInvalid:
        return SettingsInvalid(f"{self.place}: adapter {self.alias}: {message}")


def _largest(config: dict[str, object]) -> int | None:
    # Single modules may have a rank of their own.
    by_module = config.get("rank_pattern") or {}
    ranks = [config.get("r"), *(by_module.values() if isinstance(by_module, dict) else [None])]
    if any(type(rank) is not int or rank < 1 for rank in ranks):
        return None
    return max(rank for rank in ranks if isinstance(rank, int))

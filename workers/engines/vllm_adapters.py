"""LoRA in vLLM: what the engine is started with, and the adapter that a request names."""

from __future__ import annotations

from typing import Any, get_args

from common.catalogue import Model
from common.errors import SettingsInvalid

#: Adapters that one batch may mix, unless `max_loras` says otherwise: room for each is set aside on the device.
MOST_AT_ONCE = 8


def lora_arguments(model: Model, cpu: bool) -> dict[str, Any]:
    """Engine arguments under which the model's adapters share its batches; none without adapters.

    Raises SettingsInvalid for an adapter that is missing, is no LoRA or has a rank that does not fit.
    """
    if not model.adapters:
        return {}
    limit = model.options.get("max_lora_rank")
    rank = max(model.adapter(alias).rank(limit) for alias in model.adapters)
    at_once = _at_once(model, cpu)
    return {
        "enable_lora": True,
        "max_lora_rank": limit or _rank_of_vllm(model, rank),
        "max_loras": at_once,
        "max_cpu_loras": max(len(model.adapters), at_once),
    }


def lora_request(model: Model, alias: str | None) -> Any:
    """What vLLM wants to know with each request; None for the model itself."""
    if alias is None:
        return None
    from vllm.lora.request import LoRARequest

    number = 1 + list(model.adapters).index(alias)
    return LoRARequest(alias, number, str(model.adapter(alias).folder))


def _at_once(model: Model, cpu: bool) -> int:
    asked: int | None = model.options.get("max_loras")
    if not cpu:
        return asked or min(len(model.adapters), MOST_AT_ONCE)
    # vLLM 0.32 on CPU gives a request without an adapter, in a batch with others, the weights in the last place
    # (torch_ops indexes with -1). Places fill from the first: with one more than adapters, the last stays zero.
    least = len(model.adapters) + 1
    if asked is not None and asked < least:
        place = model.place_of("options.max_loras")
        raise SettingsInvalid(
            f"{place}: max_loras is {asked}; on CPU it must be at least {least}, one more than there are adapters:"
            " else vLLM mixes an adapter into answers of the model itself"
        )
    return asked or least


def _rank_of_vllm(model: Model, rank: int) -> int:
    from vllm.config.lora import MaxLoRARanks

    ranks: list[int] = sorted(get_args(MaxLoRARanks))
    fitting = [known for known in ranks if known >= rank]
    if not fitting:
        raise SettingsInvalid(f"{model.place}: adapters of {model.alias}: rank {rank}; vLLM knows at most {ranks[-1]}")
    return fitting[0]

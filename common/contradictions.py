"""Which settings of one entry contradict each other: refused with their lines, since no choice of ours would be right.

Only what needs no engine to know stands here; a rule is one function, and what it returns is (key, reason).
"""

from __future__ import annotations

from collections.abc import Iterator

from common import embedding_rules, gpus, hosted, transcription_rules
from common.catalogue_keys import ENGINE_KEYS, SET_BY_KEY, SET_BY_WORKER
from common.model import Model
from common.speculative import contradiction

Found = Iterator[tuple[str, str]]


def contradictions(model: Model) -> list[str]:
    """Everything in the entry that contradicts something else in it, with its line."""
    of_vllm = (_twice, _vllm_options, _cpu, _slots, _adapters, _speculative)
    rules = [
        _weights,
        _gguf,
        gpus.contradictions,
        embedding_rules.contradictions,
        hosted.contradictions,
        transcription_rules.contradictions,
        *(of_vllm if model.engine == "vllm" else ()),
    ]
    return [f"{model.place_of(key)}: [models.{model.alias}] {reason}" for rule in rules for key, reason in rule(model)]


def _weights(model: Model) -> Found:
    if model.revision is not None and model.local:
        yield "revision", f"revision is of a hub's model, and the weights {model.weights} are local"


def _gguf(model: Model) -> Found:
    if not model.gguf:
        return
    if model.engine not in ("vllm", "fake"):
        yield "weights", f"a .gguf file is for engine vllm, not for {model.engine}"
    quantization = model.engine_options.get("quantization", "gguf")
    if quantization != "gguf":
        yield "quantization", f"quantization is {quantization!r}, and the weights are a .gguf file: leave it out"


def _twice(model: Model) -> Found:
    for name in ENGINE_KEYS:
        if name in model.options and getattr(model, name) is not None:
            yield f"options.{name}", f"{name} is set twice: as {name} and as options.{name}"
    for name in model.options:
        if name in SET_BY_KEY:
            yield f"options.{name}", f"options.{name} is set by the key {SET_BY_KEY[name]}"
        elif name in SET_BY_WORKER:
            yield f"options.{name}", f"options.{name} is set by the worker"


def _vllm_options(model: Model) -> Found:
    options = model.engine_options
    batched, sequences = options.get("max_num_batched_tokens"), options.get("max_num_seqs")
    if isinstance(batched, int):
        if options.get("enable_chunked_prefill") is False and batched < model.max_model_len:
            reason = f"a prompt of max_model_len ({model.max_model_len}) tokens does not fit a step of"
            yield (
                "options.enable_chunked_prefill",
                f"{reason} max_num_batched_tokens ({batched}) and enable_chunked_prefill is false",
            )
        if isinstance(sequences, int) and batched < sequences:
            yield (
                "options.max_num_batched_tokens",
                f"max_num_batched_tokens ({batched}) is below max_num_seqs ({sequences}): each sequence needs one",
            )
    if {"gpu_memory_utilization", "kv_cache_memory_bytes"} <= model.options.keys():
        yield (
            "options.gpu_memory_utilization",
            "kv_cache_memory_bytes sets the cache's size, so gpu_memory_utilization would do nothing",
        )


def _cpu(model: Model) -> Found:
    if model.preset == "cpu" and "gpu_memory_utilization" in model.options:
        yield (
            "options.gpu_memory_utilization",
            "preset cpu has no use for gpu_memory_utilization; kv_cache_memory_bytes sizes its cache",
        )


def _slots(model: Model) -> Found:
    if model.least_slots > model.slots:
        yield "min_slots", f"min_slots ({model.min_slots}) is above slots ({model.slots})"


def _adapters(model: Model) -> Found:
    if model.adapters and model.options.get("enable_lora") is False:
        yield "options.enable_lora", "enable_lora is false, and there are adapters"


def _speculative(model: Model) -> Found:
    if model.speculative is None:
        return
    if "speculative_config" in model.options:
        yield "options.speculative_config", "speculation is set twice: as speculative and as options.speculative_config"
    if found := contradiction(model.speculative):
        key, reason = found
        yield f"speculative.{key}" if key in model.speculative else "speculative", reason

"""The keys of the catalogue, in tables: a key more is a row here and a field of `Model` (common/model.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from common import upstream
from common.embedding_presets import EMBEDDING_PRESETS
from common.presets import PRESETS

Kind = Literal["generation", "embedding", "transcription"]
ENGINES: dict[str, tuple[str, ...]] = {
    "generation": ("vllm", "openai", "fake"),
    "embedding": ("sentence-transformers", "onnx", "openai", "fake"),
    "transcription": ("faster-whisper", "fake"),
}
#: Of a model that does not say: generation must. Whisper has 448 positions for what it writes.
LENGTHS = {"embedding": 512, "transcription": 448}
SLOTS = {"generation": 64, "embedding": 256, "transcription": 16}
DTYPES = ("auto", "bfloat16", "float16", "float32")

Types = type | tuple[type, ...]
NUMBER = (int, float)
NAMES = {
    str: "a string",
    int: "a whole number",
    bool: "true or false",
    dict: "a table",
    list: "a list",
}


@dataclass(frozen=True, slots=True)
class Key:
    """What a key of an entry may hold."""

    types: Types
    allowed: tuple[str, ...] = ()  # its values; empty: any
    engines: tuple[str, ...] = ()  # that read it; empty: all


FIELDS: dict[str, Key] = {
    "kind": Key(str),
    "engine": Key(str),
    "weights": Key(str),
    "max_model_len": Key(int),
    "slots": Key(int),
    "gpu_share": Key(NUMBER),
    "tensor_parallel": Key(int, engines=("vllm", "fake")),
    "pipeline_parallel": Key(int, engines=("vllm", "fake")),
    "min_slots": Key(int, engines=("vllm",)),
    "preset": Key(str, allowed=(*PRESETS, *EMBEDDING_PRESETS), engines=("vllm", *ENGINES["embedding"])),
    "revision": Key(str, engines=("vllm", "sentence-transformers", "onnx", "faster-whisper")),
    "dtype": Key(str, allowed=DTYPES, engines=("vllm", "sentence-transformers")),
    # vLLM's own lists, which the workers look up: they differ from version to version and from device to device.
    "quantization": Key(str, engines=("vllm",)),
    "kv_cache_dtype": Key(str, engines=("vllm",)),
    "tokenizer": Key(str, engines=("vllm",)),
    "hf_config_path": Key(str, engines=("vllm",)),
    "adapters": Key(dict, engines=("vllm", "fake")),
    "speculative": Key(dict, engines=("vllm",)),
    # Texts before the texts, by the name that a job's `input_type` gives; the one of a job that gives none.
    "prompts": Key(dict, engines=ENGINES["embedding"]),
    "default_prompt": Key(str, engines=ENGINES["embedding"]),
    # Sizes that the vectors may be cut to (Matryoshka), by a job's `dimensions`.
    "dimensions": Key(list, engines=ENGINES["embedding"]),
    "tool_parser": Key(str, engines=("vllm",)),
    "reasoning_parser": Key(str, engines=("vllm",)),
    "vision": Key(bool, engines=("vllm",)),
    "defaults": Key(dict),
    "options": Key(dict),
    "fallback": Key(list),
    "fallback_after_s": Key(NUMBER),
    "cost": Key(dict),
}
COST: dict[str, Types] = {"currency": str, "input": NUMBER, "output": NUMBER, "audio_minute": NUMBER}
#: Keys that reach the engine under the same name, as if they stood among the options.
ENGINE_KEYS = ("revision", "dtype", "quantization", "kv_cache_dtype", "tokenizer", "hf_config_path", "reasoning_parser")
#: Engine arguments that are not for `options`, with the key that sets them.
SET_BY_KEY = {
    "model": "weights",
    "max_model_len": "max_model_len",
    "tensor_parallel_size": "tensor_parallel",  # so that the worker holds as many GPUs
    "pipeline_parallel_size": "pipeline_parallel",
}
SET_BY_WORKER = ("additional_config", "disable_log_stats", "shutdown_timeout")

# The job parameters that `defaults` may set. Jobs' own values are checked at the edge, not here.
DEFAULTS: dict[str, dict[str, Types]] = {
    "generation": {
        "max_tokens": int,
        "min_tokens": int,
        "ignore_eos": bool,
        "temperature": NUMBER,
        "top_p": NUMBER,
        "top_k": int,
        "min_p": NUMBER,
        "presence_penalty": NUMBER,
        "frequency_penalty": NUMBER,
        "repetition_penalty": NUMBER,
        "seed": int,
        "stop": (str, list),
    },
    "embedding": {
        "normalize": bool,
        "dimensions": int,
        "encoding_format": str,
        "truncate": bool,
        "input_type": str,
    },
    "transcription": {
        "language": str,
        "prompt": str,
        "temperature": NUMBER,
        "task": str,
        "response_format": str,
        "timestamp_granularities": list,
        "vad": bool,
    },
}
# vLLM's options are its own engine arguments; vLLM knows their names and the worker checks them at its start.
OPTIONS: dict[str, dict[str, Types] | None] = {
    "vllm": None,
    "sentence-transformers": {
        "device": str,
        "dtype": str,
        "batch_tokens": int,
        "batch_wait_ms": NUMBER,
        "threads": int,
        "trust_remote_code": bool,
    },
    "onnx": {"batch_tokens": int, "batch_wait_ms": NUMBER, "threads": int, "trust_remote_code": bool},
    "openai": upstream.OPTIONS,
    "faster-whisper": {
        "device": str,
        "device_index": int,
        "compute_type": str,
        "cpu_threads": int,
        "batch_size": int,
        "beam_size": int,
        "max_new_tokens": int,
        "chunk_s": NUMBER,
        "vad_threshold": NUMBER,
        "vad_min_silence_ms": int,
        "vad_speech_pad_ms": int,
    },
    "fake": {
        "tokens": int,
        "delay_s": NUMBER,
        "words": list,
        "dimensions": int,
        "start_s": NUMBER,
        "chunk_s": NUMBER,
        "batch_size": int,
    },
}


def is_of(value: Any, types: Types) -> bool:
    """Whether a value of TOML is of these types."""
    wanted = types if isinstance(types, tuple) else (types,)
    # bool is an int to Python, not to somebody who writes `slots = true`.
    return isinstance(value, wanted) and (bool in wanted or not isinstance(value, bool))


def named(types: Types) -> str:
    """Types in words."""
    if types == NUMBER:
        return "a number"
    return " or ".join(NAMES[one] for one in (types if isinstance(types, tuple) else (types,)))

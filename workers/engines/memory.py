"""What a model needs of a GPU's memory, told before it is loaded; and which key to turn when memory ran out anyway.

The need is a lower bound, from the sizes of the weights' files and the shape in config.json: what is refused here could
not have run. What it leaves out (activations, CUDA graphs, the CUDA context) is found out by the engine itself.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.model import Model
from workers.devices import GIB, Device

#: Of its share, what vLLM may use when nothing else says: the rest is for the CUDA context and other libraries.
UTILIZATION = 0.92
#: The files of one model, the first kind that is there: a folder may hold the same weights in several formats.
WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.gguf", "*.onnx")
INDEX = "model.safetensors.index.json"
BYTES = {"float32": 4, "float": 4}  # of one number; every other dtype of weights has 2
LEAST_QUANTIZED = 0.25  # of 16 bits: quantized while loading, to 4 bits or more

# What the engines and torch say when memory runs out, and what to turn. `max_model_len` and `gpu_share` are keys of
# the catalogue's entry, the others options.
ADVICE = (
    (
        "KV cache is needed, which is larger",
        "the KV cache has no room for one job of max_model_len tokens: lower max_model_len, set kv_cache_dtype to fp8, "
        "or give it more memory (gpu_share, options.gpu_memory_utilization, options.kv_cache_memory_bytes)",
    ),
    (
        "No available memory for the cache blocks",
        "nothing is left for the KV cache: raise gpu_share (or options.gpu_memory_utilization, kv_cache_memory_bytes), "
        "lower options.max_num_batched_tokens or options.max_num_seqs, quantize the weights (quantization), "
        "or spread them (tensor_parallel)",
    ),
    (
        "less than desired GPU memory utilization|less than the engine's budget",
        "other processes hold memory of this GPU: lower gpu_share (or options.gpu_memory_utilization), name another "
        "GPU (--device), or end what nvidia-smi shows on it",
    ),
)
OUT_OF_MEMORY = r"out of memory|OutOfMemoryError|CUBLAS_STATUS_ALLOC_FAILED|Failed to allocate memory"
KNOBS = {
    "vllm": "lower options.max_num_seqs, options.max_num_batched_tokens, max_model_len or "
    "options.gpu_memory_utilization (it leaves more to activations), set options.enforce_eager, or quantize the "
    "weights (quantization)",
    "faster-whisper": "lower slots, or raise gpu_share so that fewer workers are on its card",
}
EMBEDDING_KNOBS = (
    "lower options.batch_tokens or max_model_len, set dtype to float16, or raise gpu_share so that fewer workers are "
    "on its card"
)


@dataclass(frozen=True, slots=True)
class Need:
    """The least that each GPU of a model must have, in bytes."""

    weights: int
    kv_cache: int

    @property
    def total(self) -> int:
        """Both together."""
        return self.weights + self.kv_cache


def need(model: Model) -> Need | None:
    """The least memory that the model needs on each of its GPUs; None when its weights are not on this machine."""
    if not model.local or model.engine == "fake":
        return None
    path = Path(model.weights_path())
    config = _config(path, model)
    kv_cache = _kv_cache(config, model) if model.engine == "vllm" else 0
    return Need(int(_weights(path, config, model) / model.gpu_count), kv_cache // model.gpu_count)


def utilization(model: Model) -> float:
    """The part of each GPU that the engine may use: what `options` say, else the share, less vLLM's margin."""
    if model.engine != "vllm":
        return model.share
    if "gpu_memory_utilization" in model.options:
        return float(model.options["gpu_memory_utilization"])
    return round(float(model.engine_options.get("gpu_memory_utilization", UTILIZATION)) * model.share, 4)


def too_small(model: Model, device: Device) -> str:
    """Why the model cannot fit the device, with the numbers and what to turn; empty when it may."""
    least = need(model)
    if least is None or device.total_bytes is None:
        return ""
    room = int(device.total_bytes * utilization(model))
    if least.total <= room:
        return ""
    each = f" on each of {model.gpu_count} GPUs" if model.gpu_count > 1 else ""
    parts = f"weights {gib(least.weights)}"
    if least.kv_cache:
        parts += f" and KV cache {gib(least.kv_cache)} (max_model_len {model.max_model_len})"
    of = f"{gib(room)} is what {_said(model)} gives it of the {gib(device.total_bytes)} of {device}"
    needs = f"{model.place}: {model.alias} does not fit: it needs {gib(least.total)}{each}, {parts}"
    return f"{needs}; {of}. {_smaller(model)}"


def not_free(model: Model, device: Device) -> str:
    """Why the device has too little free memory for the model now; empty when it has enough."""
    least = need(model)
    if device.total_bytes is None or device.free_bytes is None:
        return ""
    # vLLM takes all of its part at once, and refuses to start without it.
    wanted = int(device.total_bytes * utilization(model)) if model.engine == "vllm" else least.total if least else 0
    if wanted <= device.free_bytes:
        return ""
    return (
        f"{model.place}: {model.alias} needs {gib(wanted)} ({_said(model)}) of {device}, which has "
        f"{gib(device.free_bytes)} of {gib(device.total_bytes)} free: processes without a lock of ours use the rest. "
        "Lower gpu_share (or options.gpu_memory_utilization), name another --device, or end what nvidia-smi shows on it"
    )


def _said(model: Model) -> str:
    share = f"gpu_share {model.share:g}"
    return f"gpu_memory_utilization {utilization(model):g} ({share})" if model.engine == "vllm" else share


def _smaller(model: Model) -> str:
    if model.engine != "vllm":
        return "Raise gpu_share, or set dtype to float16"
    return (
        "Lower max_model_len, raise gpu_share (or options.gpu_memory_utilization), set kv_cache_dtype to fp8, take "
        "quantized weights (quantization), or spread it over more GPUs (tensor_parallel)"
    )


def advice(told: str, model: Model) -> str | None:
    """What to turn, when this text of an engine or of torch says that memory ran out; else None."""
    for pattern, what in ADVICE:
        if re.search(pattern, told):
            return what
    if re.search(OUT_OF_MEMORY, told):
        return f"out of memory on the device: {KNOBS.get(model.engine, EMBEDDING_KNOBS)}"
    return None


def gib(count: int) -> str:
    """A number of bytes, to be read."""
    return f"{count / GIB:.1f} GiB"


def _config(path: Path, model: Model) -> dict[str, Any]:
    folder = Path(str(model.engine_options.get("hf_config_path", path)))
    file = folder / "config.json"
    if not file.is_file():
        return {}
    config: dict[str, Any] = json.loads(file.read_text())
    return {**config, **config.get("text_config", {})}  # of a model that also sees, the part that writes


def _weights(path: Path, config: dict[str, Any], model: Model) -> float:
    stored = path.stat().st_size if path.is_file() else sum(file.stat().st_size for file in _files(path))
    if path.is_file() or "quantization_config" in config:
        return stored  # the file is what it will be in memory
    was = str(config.get("dtype") or config.get("torch_dtype") or "float16")
    wanted = str(model.engine_options.get("dtype", "auto"))
    if wanted == "auto":
        wanted = "float16" if model.engine == "vllm" else was  # vLLM loads float32 as 16 bits
    loaded = stored * BYTES.get(wanted, 2) / BYTES.get(was, 2)
    # CTranslate2, too, converts while it loads (compute_type).
    quantized = model.engine_options.get("quantization") or model.engine == "faster-whisper"
    return loaded * LEAST_QUANTIZED if quantized else loaded


def _files(folder: Path) -> list[Path]:
    if (folder / INDEX).is_file():
        names = set(json.loads((folder / INDEX).read_text())["weight_map"].values())
        return [folder / name for name in names if (folder / name).is_file()]
    return next((files for pattern in WEIGHTS if (files := list(folder.glob(pattern)))), [])


def _kv_cache(config: dict[str, Any], model: Model) -> int:
    """The KV cache of one job of `max_model_len` tokens; or what the entry sets apart for the whole cache."""
    if "kv_cache_memory_bytes" in model.engine_options:
        return int(model.engine_options["kv_cache_memory_bytes"]) * model.gpu_count
    tokens = sum(_cached_tokens(config, model.max_model_len))
    return int(tokens * _numbers_a_token(config) * _number_bytes(model))


def _cached_tokens(config: dict[str, Any], length: int) -> list[int]:
    """How many tokens each layer remembers of a job: those with a window only so many, linear ones none."""
    window = config.get("sliding_window") or length
    kinds = config.get("layer_types") or ["sliding_attention"] * int(config.get("num_hidden_layers", 0))
    remembered = {"full_attention": length, "sliding_attention": min(window, length)}
    return [remembered.get(kind, 0) for kind in kinds]


def _numbers_a_token(config: dict[str, Any]) -> int:
    if "kv_lora_rank" in config:  # multi-head latent attention keeps one compressed vector
        return int(config["kv_lora_rank"]) + int(config.get("qk_rope_head_dim", 0))
    heads = config.get("num_attention_heads")
    kv_heads = config.get("num_key_value_heads") or heads
    size = config.get("head_dim") or (config["hidden_size"] // heads if heads and "hidden_size" in config else 0)
    return 2 * int(kv_heads or 0) * int(size)


def _number_bytes(model: Model) -> float:
    name = str(model.engine_options.get("kv_cache_dtype", "auto"))
    if name in ("auto", "bfloat16", "float16"):
        return BYTES.get(str(model.engine_options.get("dtype", "auto")), 2) if name == "auto" else 2
    return 1 if name.startswith(("fp8", "int8")) else 0.5

"""Which quantization a model can have here: by the installed vLLM's own list, and by what this device has kernels for.

A method that cannot run is refused by its name before anything is loaded. vLLM's CPU build accepts every name and then
fails while weights load, or quantizes nothing; what it really runs was found out by running it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common.catalogue import Model

#: What vLLM 0.32 runs on CPU (tests/engines/test_quantization.py); its other methods have no kernel there.
CPU = ("awq", "gptq", "compressed-tensors", "fp8_per_block", "fp8_per_channel")
#: Other names of the same.
SAME = {"auto_awq": "awq", "awq_marlin": "awq", "auto_gptq": "gptq", "gptq_marlin": "gptq"}
#: They quantize the experts of a mixture and leave all else as it is: a dense model would silently stay what it was.
EXPERTS_ONLY = ("experts_int8", "moe_wna16", "int8_per_channel_weight_only", "nvfp4_per_token")
ELSEWHERE = ". llama.cpp's server reads GGUF files and can serve them to Jarvis (engine openai)"


def of(model: Model) -> tuple[str, str] | None:
    """The method and the key that says so: the entry, a GGUF file, or the checkpoint's own configuration."""
    if asked := model.engine_options.get("quantization"):
        return str(asked), "quantization"
    if model.gguf:
        return "gguf", "weights"
    method = checkpoint(model).get("quant_method")
    return (str(method), "weights") if method else None


def checkpoint(model: Model) -> dict[str, Any]:
    """The `quantization_config` of local weights; empty when they have none."""
    if not model.local or model.gguf:
        return {}
    config = json.loads((Path(model.weights_path()) / "config.json").read_text(encoding="utf-8"))
    found = config.get("quantization_config") or config.get("compression_config") or {}
    return found if isinstance(found, dict) else {}


def problem(model: Model) -> tuple[str, str] | None:
    """The key and the reason when this model's quantization does not exist or does not run here; imports vLLM."""
    named = of(model)
    if named is None:
        return None
    method, key = named
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS
    from vllm.platforms import current_platform

    # A GPU's platform has a list of its own where vLLM knows better than the whole; on CUDA it is empty.
    here = current_platform.supported_quantization or QUANTIZATION_METHODS
    if method not in QUANTIZATION_METHODS:
        reason = f"quantization {method} is not in the installed vLLM ({_version()}); it has: {', '.join(here)}"
        return key, reason + (ELSEWHERE if method == "gguf" else "")
    if current_platform.is_cpu():
        reason = _on_cpu(SAME.get(method, method), checkpoint(model))
    else:
        reason = "" if method in here else f"runs: {', '.join(here)}"
    return (
        (key, f"quantization {method} does not run on {current_platform.device_type} here; {reason}")
        if reason
        else None
    )


def useless(model: Model, experts: int) -> tuple[str, str] | None:
    """The key and the reason when the method would leave this model as it is."""
    named = of(model)
    if named and named[0] in EXPERTS_ONLY and not experts:
        return named[1], f"quantization {named[0]} is for mixtures of experts only, and this model has no experts"
    return None


def _on_cpu(method: str, settings: dict[str, Any]) -> str:
    """Why a method does not run on CPU, empty when it does."""
    if method == "fp8" and settings.get("weight_block_size"):
        return ""
    if method not in CPU:
        return f"runs: {', '.join(CPU)}, and fp8 with weight_block_size"
    if method == "gptq" and settings.get("bits", 4) != 4:
        return f"these weights have {settings['bits']} bits; runs: 4 bits"
    return _compressed(settings) if method == "compressed-tensors" else ""


def _compressed(settings: dict[str, Any]) -> str:
    """Why a scheme of compressed-tensors does not run on CPU, empty when each does."""
    for group in settings.get("config_groups", {}).values():
        weights = group.get("weights") or {}
        kind, bits, strategy = weights.get("type", "int"), weights.get("num_bits"), weights.get("strategy")
        activations = bool(group.get("input_activations"))
        if (kind, bits, activations) not in COMPRESSED or (kind == "float" and strategy == "tensor"):
            scheme = f"{bits}-bit {kind} weights{' and activations' if activations else ''} by {strategy}"
            return f"this checkpoint has {scheme}; runs: {COMPRESSED_WORDS}"
    return ""


#: (type, bits of the weights, whether activations are quantized too)
COMPRESSED = {("int", 8, True), ("int", 4, False), ("float", 8, True)}
COMPRESSED_WORDS = "int8 weights and activations, int4 weights, float8 weights and activations by channel"


def _version() -> str:
    import vllm

    return str(vllm.__version__)

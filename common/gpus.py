"""What a catalogue entry says about GPUs: a share of one, or several that hold one model together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from common.model import Model

#: The share of one GPU that an engine's worker holds when the entry does not say; the others run without a GPU.
DEFAULT_SHARES = {"vllm": 1.0, "sentence-transformers": 0.2, "faster-whisper": 0.2}


def default_share(engine: str, preset: str | None, options: Mapping[str, Any]) -> float:
    """The share of each GPU for an entry without `gpu_share`."""
    return 0.0 if _on_cpu(preset, options) else DEFAULT_SHARES.get(engine, 0.0)


def contradictions(model: Model) -> Iterator[tuple[str, str]]:
    """What does not fit together: the key, and why."""
    for name, size in (("tensor_parallel", model.tensor_parallel), ("pipeline_parallel", model.pipeline_parallel)):
        if size < 1:
            yield name, f"{name} is {size}; allowed: 1 or more"
    if not 0 <= model.share <= 1:
        yield "gpu_share", f"gpu_share is {model.share:g}; allowed: 0 (no GPU) to 1 (a whole one)"
    elif model.share and (cpu := _on_cpu(model.preset, model.options)):
        yield "gpu_share", f"gpu_share is {model.share:g}, but {cpu} runs without a GPU"
    asked = model.options.get("gpu_memory_utilization")
    if isinstance(asked, (int, float)) and asked > model.share > 0:
        reason = f"gpu_memory_utilization is {asked:g}, more than the gpu_share ({model.share:g}) that a worker holds"
        yield "options.gpu_memory_utilization", reason


def _on_cpu(preset: str | None, options: Mapping[str, Any]) -> str:
    """What of an entry keeps it off every GPU, in words; empty when nothing does."""
    device = str(options.get("device", ""))
    return "preset cpu" if preset == "cpu" else f"options.device {device}" if device.startswith("cpu") else ""

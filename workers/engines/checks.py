"""What would stop a model's engine at its start, by engine: asked by `python -m workers.models check`."""

from __future__ import annotations

from common.catalogue import Model
from common.errors import SettingsInvalid
from common.settings import load_settings
from workers.devices import list_devices
from workers.engines.memory import too_small


def problems(model: Model) -> list[str]:
    """Everything that would stop the start, each with its line; nothing is loaded."""
    try:
        model.check_weights()
        found = _of_vllm(model) if model.engine == "vllm" else []
        return found or _too_large(model)
    except SettingsInvalid as error:
        return str(error).splitlines()


def _of_vllm(model: Model) -> list[str]:
    from workers.engines.vllm_check import problems as of_vllm

    return of_vllm(model)


def _too_large(model: Model) -> list[str]:
    """Why none of the node's GPUs can hold the model, told by the largest."""
    if not model.share:
        return []
    devices = sorted(list_devices(load_settings()), key=lambda device: device.total_bytes or 0)
    refusals = [too_small(model, device) for device in devices]
    return refusals[-1:] if all(refusals) else []

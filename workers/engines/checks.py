"""What would stop a model's engine at its start, by engine: asked by `python -m workers.models check`."""

from __future__ import annotations

from common.catalogue import Model
from common.errors import SettingsInvalid


def problems(model: Model) -> list[str]:
    """Everything that would stop the start, each with its line; nothing is loaded."""
    try:
        model.check_weights()
        if model.engine == "vllm":
            from workers.engines.vllm_check import problems as of_vllm

            return of_vllm(model)
    except SettingsInvalid as error:
        return str(error).splitlines()
    return []

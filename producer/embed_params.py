"""What an embedding job may ask of its model, by the catalogue: checked before the job is accepted."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from common.catalogue import Model
from common.errors import InvalidField
from producer.prompt import Prompts


async def check(model: Model, texts: list[str], params: dict[str, Any], prompts: Prompts) -> None:
    """Raise InvalidField for a size, an input type or, without `truncate`, a text that the model does not take."""
    _one_of("dimensions", params, model.dimensions, f"the model {model.alias} has no sizes that it can be cut to")
    _one_of("input_type", params, model.prompts, f"the model {model.alias} has no prompts")
    if not params.get("truncate", model.defaults.get("truncate", True)):
        prompt = params.get("input_type") or model.defaults.get("input_type") or model.default_prompt
        before = model.prompts[prompt] if prompt else ""
        await prompts.check_texts(model, [before + text for text in texts])


def _one_of(name: str, params: dict[str, Any], allowed: Collection[Any], none: str) -> None:
    if name in params and params[name] not in allowed:
        words = ", ".join(map(str, allowed))
        raise InvalidField(f"params.{name}", params[name], words or f"none: {none}")

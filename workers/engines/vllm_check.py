"""What vLLM would refuse of a catalogue entry, asked before any weights are loaded: names, types, quantization, and
vLLM's own validation of the whole, which takes milliseconds once vLLM is imported.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from common.catalogue import Model
from common.errors import SettingsInvalid, shown
from workers.engines import vllm_quantization
from workers.engines.vllm_engine import engine_arguments, prepare
from workers.engines.vllm_requests import unknown_parsers

Found = tuple[str, str]  # (key of the entry, reason)
#: What vLLM's validation raises, most of it ValueError (pydantic's is one).
REFUSALS = (AssertionError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError)


def check(model: Model) -> None:
    """Raise SettingsInvalid with everything that vLLM would refuse, each with its line."""
    if found := problems(model):
        raise SettingsInvalid("\n".join(found))


def problems(model: Model) -> list[str]:
    """Everything that vLLM would refuse, each with its line. Asks the hub only for weights that are a hub's."""
    prepare(model)
    found = [*_options(model), *unknown_parsers(model)]
    quantization = vllm_quantization.problem(model)
    if quantization:
        found.append(quantization)
    if not found:  # vLLM's own validation ends at its first mistake, so what is known by name comes before
        found += _whole(model)
    return [f"{model.place_of(key)}: [models.{model.alias}] {reason}" for key, reason in found]


def _options(model: Model) -> Iterator[Found]:
    from vllm import __version__
    from vllm.engine.arg_utils import AsyncEngineArgs

    hints = {one.name: one.type for one in fields(AsyncEngineArgs)}
    for name, value in model.engine_options.items():
        if name not in hints:
            near = difflib.get_close_matches(name, hints, n=1)
            meant = f"; did you mean {near[0]}?" if near else ""
            yield f"options.{name}", f"vLLM {__version__} has no option {shown(name)}{meant}"
        elif reason := _mistyped(hints[name], value):
            yield name, f"{name} is {shown(value)}: {reason}"


def _mistyped(hint: Any, value: Any) -> str:
    """Why a value is not of an option's type, empty when it is."""
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    if isinstance(hint, str):  # vLLM leaves one type to be looked up later; it checks that option itself
        return ""
    own = hasattr(hint, "__pydantic_config__")
    try:
        taken = TypeAdapter(hint, config=None if own else ConfigDict(arbitrary_types_allowed=True)).validate_python(
            value
        )
    except ValidationError as error:
        return "; ".join(one["msg"] for one in error.errors())
    # pydantic would take "yes" for true and true for 1; a catalogue has both ways to say what is meant.
    if isinstance(taken, (bool, int, float)) and (
        isinstance(value, str) or isinstance(taken, bool) != isinstance(value, bool)
    ):
        return f"must be {'true or false' if isinstance(taken, bool) else 'a number'}"
    return ""


def _whole(model: Model) -> list[Found]:
    from vllm.engine.arg_utils import AsyncEngineArgs

    try:
        config = AsyncEngineArgs(**engine_arguments(model)).create_engine_config()
    except REFUSALS as error:
        return list(_said(model, error))
    if model.vision and not config.model_config.is_multimodal_model:
        return [("vision", "vision is true, and the model takes no images")]
    useless = vllm_quantization.useless(model, config.model_config.get_num_experts())
    return [useless] if useless else []


def _said(model: Model, error: Exception) -> Iterator[Found]:
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        yield _blamed(model, "", str(error)), f"vLLM refuses it: {error}"
        return
    for one in error.errors():
        name = ".".join(map(str, one["loc"]))
        reason = one["msg"].removeprefix("Value error, ")
        yield _blamed(model, name, reason), f"vLLM refuses it: {f'{name}: ' if name else ''}{reason}"


def _blamed(model: Model, name: str, reason: str) -> str:
    # vLLM's messages name the argument, mostly; the longest name that fits is the one that is meant.
    keys = [key.rpartition(".")[2] for key in model.places]
    fitting = [key for key in keys if key == name or key in reason]
    return max(fitting, key=len, default="weights")

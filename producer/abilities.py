"""What a model can do, by its catalogue entry and its tokenizer's files: the rest is refused before it is queued."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common.catalogue import Model
from common.errors import InvalidField, SettingsInvalid
from producer.conversation import images

#: Parameters that are not handed on to an upstream: it would have to be read for what they bring back.
NOT_UPSTREAM = (
    "n",
    "logprobs",
    "top_logprobs",
)
TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")


class Abilities:
    """Checks requests against the models; remembers which have a chat template."""

    def __init__(self) -> None:
        self._with_template: set[str] = set()

    def check(self, model: Model, asked: dict[str, Any], params: dict[str, Any]) -> None:
        """Raise InvalidField for the first thing asked that the model cannot do."""
        if model.engine == "openai" and (first := next((name for name in NOT_UPSTREAM if name in params), None)):
            allowed = f"nothing; {model.alias} is an upstream, to which it is not handed on"
            raise InvalidField(f"params.{first}", params[first], allowed)
        if params.get("tools"):
            _check_tools(model, asked, params["tools"])
        if (params.get("n") or 1) > 1 and params.get("temperature", model.defaults.get("temperature")) == 0:
            raise InvalidField(
                "params.n", params["n"], "1 with the temperature 0, which gives the same answer each time"
            )
        messages = asked.get("messages")
        if messages is None:
            return
        _check_images(model, messages)
        if not self._has_template(model):
            raise InvalidField("input.messages", messages, f"a prompt; the model {model.alias} has no chat template")

    def _has_template(self, model: Model) -> bool:
        """Whether the model has one, or its files are not on this machine: then the engine says."""
        if model.engine != "vllm" or model.alias in self._with_template:
            return True
        if _lacks_template(model):
            return False
        self._with_template.add(model.alias)
        return True


def _check_tools(model: Model, asked: dict[str, Any], tools: Any) -> None:
    if model.tool_parser is None and model.engine != "openai":  # an upstream reads its model's calls itself
        raise InvalidField("params.tools", tools, f"no tools; the model {model.alias} has no tool_parser")
    if "messages" not in asked:
        raise InvalidField("params.tools", tools, "only together with input.messages")


def _check_images(model: Model, messages: list[dict[str, Any]]) -> None:
    if model.vision:
        return
    for number, message in enumerate(messages):
        if images(message.get("content")):
            field, allowed = f"input.messages[{number}].content", f"text; the model {model.alias} has no vision"
            raise InvalidField(field, "an image", allowed)


def _lacks_template(model: Model) -> bool:
    try:
        folder = Path(model.tokenizer_path())
    except SettingsInvalid:
        return False
    if any((folder / name).is_file() for name in TEMPLATE_FILES):
        return False
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_text())
    except (OSError, ValueError):
        return False  # not here, or not ours to judge
    return "chat_template" not in settings

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.catalogue import Model
from common.errors import InvalidField
from producer.abilities import Abilities

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}
URL = {"url": "data:image/png;base64,AAAA"}
PICTURE: dict[str, Any] = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": URL}]}]}
TOOLS: dict[str, Any] = {"tools": [{"type": "function", "function": {"name": "add"}}]}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    return tmp_path


def model(weights: Path, **keys: Any) -> Model:
    return Model("m", "generation", "vllm", str(weights), 64, 4, **keys)


def refused(made: Model, asked: dict[str, Any], params: dict[str, Any]) -> str:
    with pytest.raises(InvalidField) as caught:
        Abilities().check(made, asked, params)
    return f"{caught.value.field}: {caught.value.allowed}"


def test_tools_need_a_tool_parser_and_a_conversation(weights: Path) -> None:
    assert refused(model(weights), CHAT, TOOLS) == "params.tools: no tools; the model m has no tool_parser"
    able = model(weights, tool_parser="hermes")
    assert refused(able, {"prompt": "x"}, TOOLS) == "params.tools: only together with input.messages"
    Abilities().check(able, CHAT, TOOLS)


def test_an_image_needs_vision(weights: Path) -> None:
    assert refused(model(weights), PICTURE, {}) == "input.messages[0].content: text; the model m has no vision"
    Abilities().check(model(weights, vision=True), PICTURE, {})


def test_a_conversation_needs_a_chat_template(weights: Path) -> None:
    Abilities().check(model(weights), CHAT, {})
    (weights / "tokenizer_config.json").write_text("{}")
    assert refused(model(weights), CHAT, {}) == "input.messages: a prompt; the model m has no chat template"
    Abilities().check(model(weights), {"prompt": "x"}, {})
    (weights / "chat_template.jinja").write_text("{{ messages }}")
    Abilities().check(model(weights), CHAT, {})


def test_a_model_whose_files_are_not_here_is_left_to_its_engine(tmp_path: Path) -> None:
    Abilities().check(model(tmp_path / "elsewhere"), CHAT, {})
    Abilities().check(Model("m", "generation", "fake", "", 64, 4), CHAT, {})


def test_several_answers_need_a_temperature_the_models_own_too(weights: Path) -> None:
    cold = model(weights, defaults={"temperature": 0})
    assert refused(cold, {"prompt": "x"}, {"n": 2}).startswith("params.n: 1 with the temperature 0")
    Abilities().check(cold, {"prompt": "x"}, {"n": 2, "temperature": 0.5})
    Abilities().check(cold, {"prompt": "x"}, {"n": 1})


@pytest.mark.parametrize("name", ["n", "logprobs", "top_logprobs"])
def test_what_is_not_handed_on_to_an_upstream_is_refused_not_dropped(name: str) -> None:
    hosted = Model("m", "generation", "openai", "gpt", 64, 4, options={"extensions": True})
    assert refused(hosted, CHAT, {name: 2}) == f"params.{name}: nothing; m is an upstream, to which it is not handed on"
    Abilities().check(hosted, CHAT, {"temperature": 0})

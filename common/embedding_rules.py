"""What the catalogue refuses in an embedding entry: prompts, sizes, defaults and batching that cannot be meant."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, get_args

from common.catalogue_keys import is_of
from common.embedding_presets import EMBEDDING_PRESETS
from common.errors import shown
from common.model import Model
from common.presets import PRESETS
from common.vectors import EncodingFormat

Found = Iterator[tuple[str, str]]
#: What a job may call a prompt.
INPUT_TYPE = re.compile(r"^[A-Za-z0-9_-]{1,32}$")


def contradictions(model: Model) -> Found:
    """Each key that is wrong, and why."""
    yield from _preset(model)
    if model.kind == "embedding":
        for rule in (_prompts, _dimensions, _embedding_defaults, _batching, _remote_code):
            yield from rule(model)


def _preset(model: Model) -> Found:
    known = PRESETS if model.kind == "generation" else EMBEDDING_PRESETS
    if model.preset is not None and model.preset not in known:
        yield "preset", f"preset is {shown(model.preset)}; allowed for {model.kind}: {', '.join(known)}"


def _prompts(model: Model) -> Found:
    for name, text in model.prompts.items():
        if not INPUT_TYPE.match(name):
            yield "prompts", f"prompt {shown(name)}: at most 32 letters, digits and _ -"
        if not isinstance(text, str):
            yield "prompts", f"prompt {name} is {shown(text)}; must be a string"
    if model.default_prompt is not None and model.default_prompt not in model.prompts:
        yield "default_prompt", f"default_prompt is {shown(model.default_prompt)}; {_named(model.prompts)}"


def _dimensions(model: Model) -> Found:
    for size in model.dimensions:
        if not is_of(size, int) or size < 1:
            yield "dimensions", f"dimensions has {shown(size)}; allowed: whole numbers from 1"


def _embedding_defaults(model: Model) -> Found:
    defaults = model.defaults
    if defaults.get("encoding_format", "float") not in get_args(EncodingFormat):
        reason = f"encoding_format is {shown(defaults['encoding_format'])}; allowed: float, base64"
        yield "defaults", f"defaults: {reason}"
    if defaults.get("input_type", next(iter(model.prompts), None)) not in (*model.prompts, None):
        yield "defaults", f"defaults: input_type is {shown(defaults['input_type'])}; {_named(model.prompts)}"
    if "dimensions" in defaults and defaults["dimensions"] not in model.dimensions:
        sizes = ", ".join(map(str, model.dimensions)) or "none (the key dimensions lists them)"
        yield "defaults", f"defaults: dimensions is {defaults['dimensions']}; allowed: {sizes}"


def _batching(model: Model) -> Found:
    for key, least in (("batch_tokens", 1), ("batch_wait_ms", 0), ("threads", 1)):
        if model.options.get(key, least) < least:
            yield f"options.{key}", f"{key} is {model.options[key]}; allowed: {least} or more"


def _remote_code(model: Model) -> Found:
    preset = EMBEDDING_PRESETS.get(model.preset or "")
    if preset is None or not preset.remote_code or model.engine != "sentence-transformers":
        return
    if not model.options.get("trust_remote_code"):
        reason = "is loaded with Python code from its repository: set options.trust_remote_code = true if you trust"
        yield "preset", f"{model.preset} {reason} that code, or use engine onnx with a folder that has a model.onnx"


def _named(prompts: dict[str, Any]) -> str:
    return f"allowed: {', '.join(prompts)}" if prompts else "the entry has no prompts"

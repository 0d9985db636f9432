"""What is wrong in the catalogue about hosted models: their options, their prices, and the chains that name them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from common.errors import shown
from common.upstream import OptionInvalid, Upstream

if TYPE_CHECKING:
    from common.model import Model

Found = Iterator[tuple[str, str]]
CURRENCY = re.compile(r"^[A-Z]{3}$")


def contradictions(model: Model) -> Found:
    """Keys of one entry, each with what is wrong about it."""
    if model.engine == "openai":
        yield from _upstream(model)
    yield from _cost(model)
    yield from _fallback(model)


def _upstream(model: Model) -> Found:
    try:
        Upstream.of(model.options)
    except OptionInvalid as error:
        yield f"options.{error.key}", str(error)
        return
    for name in model.unknown_params(model.defaults):
        yield "defaults", f"defaults.{name}: its upstream has no such parameter, unless options.extensions is true"


def _cost(model: Model) -> Found:
    if model.cost is None:
        return
    if not CURRENCY.match(model.cost.currency):
        yield "cost", f"cost.currency is {shown(model.cost.currency)}; allowed: three capitals, as EUR or USD"
    for name in ("input", "output", "audio_minute"):
        if not 0 <= getattr(model.cost, name) <= 1_000_000:
            yield "cost", f"cost.{name} is {getattr(model.cost, name)}; allowed: 0 to 1000000"


def _fallback(model: Model) -> Found:
    if model.fallback and model.kind != "generation":
        yield (
            "fallback",
            f"fallback is for generation: {model.kind} results of two models cannot stand beside each other",
        )
    if model.fallback and model.adapters:
        yield "fallback", "fallback is for a model without adapters: no other model has them"
    if not 0 < model.fallback_after_s <= 86_400:
        yield "fallback_after_s", f"fallback_after_s is {model.fallback_after_s:g}; allowed: more than 0, at most 86400"
    if "fallback_after_s" in model.places and not model.fallback:
        yield "fallback_after_s", "fallback_after_s needs a fallback"


def broken_chains(models: Mapping[str, Model]) -> list[str]:
    """What is wrong between entries: a fallback that is none, or cannot do what the model's defaults ask for."""
    return [
        f"{model.place_of('fallback')}: [models.{model.alias}] {reason}"
        for model in models.values()
        for reason in _links(model, models)
    ]


def _links(model: Model, models: Mapping[str, Model]) -> Iterator[str]:
    others = [one.alias for one in models.values() if one.kind == model.kind and one is not model]
    for alias in model.fallback:
        if alias not in others or model.fallback.count(alias) > 1:
            yield f"fallback names {shown(alias)}; allowed, once each: {', '.join(others) or 'no other model is there'}"
            continue
        for name in models[alias].unknown_params(model.defaults):
            yield f"defaults.{name}: the upstream of its fallback {alias} has no such parameter"

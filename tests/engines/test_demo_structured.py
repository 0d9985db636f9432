"""JSON of a schema from the model that is shipped: each answer parses and is of the schema, hot and cold."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import jsonschema
import pytest
import pytest_asyncio

from common.catalogue import Catalogue
from tests.engines.conftest import SHIPPED, SchedulerStats, Worker
from workers.engines.vllm_engine import VllmEngine

TEXT = {"type": "string", "minLength": 1, "maxLength": 40}
SCHEMA = {
    "type": "object",
    "properties": {
        "title": TEXT,
        "kind": {"enum": ["job", "queue", "worker", None]},
        "weight": {"type": "number", "minimum": -5, "maximum": 5},
        "count": {"type": "integer", "minimum": 0, "maximum": 9999},
        "done": {"type": "boolean"},
        "steps": {
            "type": "array",
            "minItems": 1,
            "maxItems": 3,
            "items": {
                "type": "object",
                "properties": {"name": TEXT, "code": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"}},
                "required": ["name", "code"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["title", "kind", "weight", "count", "done", "steps"],
    "additionalProperties": False,
}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def demo() -> AsyncIterator[Worker]:
    engine = VllmEngine(Catalogue.load(SHIPPED).get("generation", "demo"))
    await engine.start()
    yield Worker(engine, SchedulerStats())
    await engine.stop()


async def wrong(demo: Worker, count: int, temperature: float) -> list[str]:
    """What is wrong with so many answers, asked all at once."""
    asked: dict[str, Any] = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}

    async def one(number: int) -> str | None:
        name = f"demo-{temperature}-{number}"
        chat = {"messages": [{"role": "user", "content": f"What is the job number {number} for?"}]}
        params: Any = {"response_format": asked, "temperature": temperature, "max_tokens": 600, "seed": number}
        result = await demo.run(chat, name=name, **params)
        try:
            jsonschema.validate(json.loads(result.output["text"]), SCHEMA)
        except ValueError as error:
            return f"{number}: {error}: {result.output}"
        except jsonschema.ValidationError as error:
            return f"{number}: {error.message}: {result.output}"
        return None

    return [found for found in await asyncio.gather(*map(one, range(count))) if found]


@pytest.mark.parametrize("temperature", [0, 1])
async def test_each_of_20_answers_is_json_of_the_schema(demo: Worker, temperature: float) -> None:
    assert await wrong(demo, 20, temperature) == []


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0, 1])
async def test_each_of_200_answers_is_json_of_the_schema(demo: Worker, temperature: float) -> None:
    assert await wrong(demo, 200, temperature) == []

"""The Lua scripts as files, and how they are loaded and run."""

from __future__ import annotations

import re
from typing import Any

import fakeredis
import pytest
from redis.exceptions import NoScriptError, OutOfMemoryError, ReadOnlyError, ResponseError

from common import scripts

INCLUDED = (
    "job",
    "order",
    "owners",
    "claiming",
    "committing",
    "batch",
    "limits",
    "usage",
    "api_keys",
    "pace",
    "lanes",
    "conversation",
    "paid",
)
NAMES = sorted(path.stem for path in scripts.FOLDER.glob("*.lua") if path.stem not in INCLUDED)


@pytest.mark.parametrize("name", NAMES)
def test_a_script_says_what_it_takes_returns_and_why_it_is_atomic(name: str) -> None:
    text = (scripts.FOLDER / f"{name}.lua").read_text()
    assert text.startswith(f"-- {name}: ")
    for heading in ("-- KEYS[1]", "-- ARGV", "-- returns ", "-- atomic because "):
        assert heading in text
    assert "-- include job.lua" in text


@pytest.mark.parametrize("name", NAMES)
def test_a_script_is_sent_with_what_it_includes_and_no_include_left(name: str) -> None:
    source = scripts.source(name)
    assert "local P = KEYS[1]" in source
    assert scripts.INCLUDE not in source
    assert re.fullmatch("[0-9a-f]{40}", scripts.digest(name))


@pytest.mark.parametrize("name", [*NAMES, *INCLUDED])
def test_no_script_reads_another_clock_or_makes_up_numbers(name: str) -> None:
    text = (scripts.FOLDER / f"{name}.lua").read_text()
    assert "os.time" not in text
    assert "math.random" not in text
    assert "KEYS[2]" not in text


def test_every_script_is_used() -> None:
    called = " ".join(module.read_text() for module in scripts.FOLDER.parent.glob("*.py"))
    for name in NAMES:
        assert f'"{name}"' in called


async def test_a_script_is_sent_once_and_then_run_by_its_digest() -> None:
    client = fakeredis.FakeAsyncRedis()
    sent: list[str] = []
    original: Any = client.execute_command

    async def counted(*args: Any) -> Any:
        sent.append(args[0])
        return await original(*args)

    client.execute_command = counted  # type: ignore[method-assign]
    assert await scripts.run(client, "trim", "p:{00}:", 10, "-", 0) == [0, b""]
    assert await scripts.run(client, "trim", "p:{00}:", 10, "-", 0) == [0, b""]
    assert sent == ["EVALSHA", "EVAL", "EVALSHA"]


async def test_a_script_that_fails_is_not_sent_again() -> None:
    client = fakeredis.FakeAsyncRedis()
    with pytest.raises(ResponseError) as failed:
        await scripts.run(client, "claim", "p:{00}:", "generation:demo")
    assert not isinstance(failed.value, NoScriptError)


@pytest.mark.parametrize(
    ("text", "known_as"),
    [
        ("Error running script (call to f_1): @user_script:219: -OOM command not allowed", OutOfMemoryError),
        ("Error running script (call to f_1): @user_script:219: -READONLY You can't write", ReadOnlyError),
        ("NOREPLICAS Not enough good replicas to write. script: f_1", ReadOnlyError),
        ("MISCONF Errors writing to the AOF file: No space left on device", ReadOnlyError),
        ("Error running script: -BROOM of jobs", ResponseError),
    ],
)
async def test_a_redis_that_refuses_to_write_is_known_as_that_whatever_its_version(
    monkeypatch: pytest.MonkeyPatch, text: str, known_as: type[ResponseError]
) -> None:
    async def refused(*_: Any) -> Any:
        raise ResponseError(text)

    monkeypatch.setattr(scripts, "execute", refused)
    with pytest.raises(known_as) as raised:
        await scripts.run(fakeredis.FakeAsyncRedis(), "trim", "p:{00}:", 10)
    assert type(raised.value) is known_as

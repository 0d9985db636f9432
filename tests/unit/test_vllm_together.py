"""Who comes in one turn of the event loop is announced; `tests/engines` has the engine core's part."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

from workers.engines.vllm_together import FOLLOWED, Together, marked


async def test_all_but_the_last_of_a_turn_are_followed() -> None:
    together = Together()
    assert await asyncio.gather(*(together.followed() for _ in range(5))) == [True] * 4 + [False]
    assert await together.followed() is False, "one that comes alone"
    assert list(await asyncio.gather(together.followed(), together.followed())) == [True, False]


async def test_who_leaves_before_the_turn_is_over_is_not_announced() -> None:
    together = Together()
    tasks = [asyncio.create_task(together.followed()) for _ in range(3)]

    def leave() -> None:
        tasks[2].cancel()

    asyncio.get_running_loop().call_soon(leave)
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert found[:2] == [True, False]
    assert isinstance(found[2], asyncio.CancelledError)


def test_a_mark_leaves_other_arguments_as_they_are() -> None:
    params = SimpleNamespace(extra_args={"a": 1})
    assert marked(params, followed=False).extra_args == {"a": 1}
    assert marked(params, followed=True).extra_args == {"a": 1, FOLLOWED: True}
    assert marked(SimpleNamespace(extra_args=None), followed=False).extra_args is None

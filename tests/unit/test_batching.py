"""The batcher, with an encoder that only counts: what goes together, in which order, and who waits for whom."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from common.catalogue import Model
from common.errors import JobFailed, SettingsInvalid
from workers.engines.batching import CROWD, BatchingEngine, check_weights, padded
from workers.engines.calls import LATER_S, Call
from workers.engines.grouping import Grouping
from workers.engines.text import Text, TextReader

LIMIT = 50


class CountingEncoder:
    """A text's vector is (its first token, its tokens). A batch waits for `go`; token 1 ("bad") cannot be encoded."""

    def __init__(self) -> None:
        vocabulary = {"?": 0, "bad": 1, **{f"w{n}": n for n in range(2, 100)}}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment, unused-ignore]
        self.reader = TextReader(tokenizer, LIMIT)
        self.pad_id, self.dimensions, self.grouping = 0, 2, Grouping(16, cost=8)
        self.pooling, self.pools_prompt, self.threads = "mean", True, 1
        self.groups: list[list[int]] = []  # tokens of each text of each group
        self.go = threading.Event()
        self.go.set()
        self.meet: Callable[[], object] = lambda: self.go.wait(10)

    def enter_thread(self) -> None:
        """Nothing."""

    def encode(self, ids: Any, mask: Any) -> Any:
        """One group."""
        self.meet()
        self.groups.append(mask.sum(axis=1).tolist())
        if (ids[:, 0] == 1).any():
            raise RuntimeError("a bad text")
        return np.stack([ids[:, 0], mask.sum(axis=1)], axis=1).astype(np.float32)


class Engine(BatchingEngine):
    """The batcher around it."""

    def load(self) -> CountingEncoder:
        """No model."""
        self.counting = CountingEncoder()
        self.counting.threads = self.model.options.get("threads", 1)
        return self.counting


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    made = await started()
    yield made
    made.counting.go.set()
    await made.stop()


async def started(**options: Any) -> Engine:
    engine = Engine(Model("m", "embedding", "onnx", "", LIMIT, 4, options={"batch_tokens": 20, **options}))
    await engine.start()
    return engine


def text(first: int, tokens: int) -> str:
    return " ".join([f"w{first}"] + ["w9"] * (tokens - 1))


async def blocked(engine: Engine) -> asyncio.Task[Any]:
    """A call whose batch is under way and does not end before `go`."""
    engine.counting.go.clear()
    task = asyncio.create_task(engine.embed([text(2, 1)]))
    async with asyncio.timeout(5):
        while not engine.batches:  # noqa: ASYNC110 - a batch announces itself to nobody
            await asyncio.sleep(0)
    return task


async def test_each_call_gets_its_own_vectors_in_its_own_order(engine: Engine) -> None:
    first = await blocked(engine)
    calls = [engine.embed([text(n, n % 5 + 1), text(n + 40, 3)]) for n in range(3, 20)]
    engine.counting.go.set()
    _, *found = await asyncio.gather(first, *calls)
    for n, batch in zip(range(3, 20), found, strict=True):
        assert batch.vectors.tolist() == [[n, n % 5 + 1], [n + 40, 3]]
        assert batch.prompt_tokens == n % 5 + 4


async def test_a_batch_mixes_jobs_is_bounded_by_tokens_and_goes_by_length(engine: Engine) -> None:
    first = await blocked(engine)
    tasks = [asyncio.create_task(engine.embed([text(n + 3, n % 4 + 1)])) for n in range(16)]  # 40 tokens: two batches
    await asyncio.sleep(0)
    engine.counting.go.set()
    await asyncio.gather(first, *tasks)
    assert engine.batches == [1, 8, 8]
    assert engine.counting.groups == [[1], [4, 4, 3, 3], [2, 2, 1, 1], [4, 4, 3, 3], [2, 2, 1, 1]]


async def test_each_thread_runs_a_group_of_its_own() -> None:
    engine = await started(threads=2)
    engine.counting.meet = threading.Barrier(2, timeout=5).wait
    batch = await engine.embed([text(3, 2), text(4, 1)])  # each group waits for the other to be under way
    assert batch.vectors.tolist() == [[3, 2], [4, 1]]
    await engine.stop()


async def test_a_long_job_does_not_hold_up_a_short_one(engine: Engine) -> None:
    first = await blocked(engine)
    long = asyncio.create_task(engine.embed([text(3, 10)] * 40))  # 400 tokens: twenty batches
    await asyncio.sleep(0)
    short = asyncio.create_task(engine.embed([text(4, 1)]))
    await asyncio.sleep(0)
    engine.counting.go.set()
    await short
    assert not long.done()
    assert len(engine.batches) <= 4  # the last was made while the short one was under way
    await asyncio.gather(first, long)


async def test_low_calls_let_the_others_go_first_and_get_on_too(engine: Engine) -> None:
    first = await blocked(engine)
    low = [asyncio.create_task(engine.embed([text(3, 2)], low=True)) for _ in range(8)]
    await asyncio.sleep(0)
    others = [asyncio.create_task(engine.embed([text(4, 3)])) for _ in range(3)]
    await asyncio.sleep(0)
    engine.counting.go.set()
    await asyncio.gather(first, *low, *others)
    assert engine.counting.groups[:2] == [[1], [3, 3, 3]]
    assert [size for group in engine.counting.groups[2:] for size in group] == [2] * 8


async def test_while_others_come_low_groups_are_small_and_leave_a_thread_free() -> None:
    engine = await started(threads=2)
    await engine.embed([text(2, 1)])  # somebody waits for answers these days
    engine.counting.groups.clear()
    engine.counting.go.clear()
    low = asyncio.create_task(engine.embed([text(3, 2)] * 8, low=True))
    async with asyncio.timeout(5):
        while not engine._groups:  # noqa: ASYNC110 - a group announces itself to nobody
            await asyncio.sleep(0)
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(engine._groups) == 1
    other = asyncio.create_task(engine.embed([text(4, 3)]))
    async with asyncio.timeout(5):
        while len(engine._groups) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0)
    engine.counting.go.set()
    await asyncio.gather(low, other)
    assert max(len(group) for group in engine.counting.groups if group[0] == 2) == 2  # 4 tokens of 16
    await engine.stop()


async def test_low_calls_get_a_group_after_many_batches_of_the_others(engine: Engine) -> None:
    first = await blocked(engine)
    low = asyncio.create_task(engine.embed([text(3, 2)], low=True))
    await asyncio.sleep(0)
    others = [asyncio.create_task(engine.embed([text(4, 16)])) for _ in range(40)]  # one to a group
    await asyncio.sleep(0)
    engine.counting.go.set()
    await low
    assert 0 < sum(other.done() for other in others) < 40
    await asyncio.gather(first, *others)


async def test_while_a_crowd_waits_those_that_are_done_are_told_together() -> None:
    engine = await started()
    first = await blocked(engine)
    told: list[float] = []
    calls = [asyncio.create_task(engine.embed([text(3, 16)])) for _ in range(CROWD + 40)]  # one to a group
    for call in calls:
        call.add_done_callback(lambda _: told.append(time.monotonic()))
    for _ in range(3):
        await asyncio.sleep(0)
    engine.counting.meet = lambda: time.sleep(0.01)
    engine.counting.go.set()
    begun = time.monotonic()
    await asyncio.gather(first, *calls)
    told = sorted(moment - begun for moment in told)
    in_crowd = told[:20]  # while more than the crowd wait; the last ones are told one by one
    gaps = sum(later - sooner > 0.005 for sooner, later in pairwise(in_crowd))
    assert gaps <= 4
    assert in_crowd[0] < LATER_S * 5
    assert sum(later - sooner > 0.005 for sooner, later in pairwise(told[-CROWD:])) > CROWD / 2
    await engine.stop()


async def test_a_few_calls_are_told_at_once(engine: Engine) -> None:
    begun = time.monotonic()
    for n in range(3, 13):
        await engine.embed([text(n, 2)])
    assert time.monotonic() - begun < 10 * LATER_S / 2


async def test_calls_that_are_done_are_told_so_though_the_engine_stops() -> None:
    engine = await started()
    call = Call([Text([5], 1)], asyncio.get_running_loop().create_future(), np.zeros((1, 2), np.float32))
    engine._calls.append(call)
    engine._done.add([((call, call.pop()), np.array([5, 1], np.float32))], later=True)
    await asyncio.sleep(0)
    await engine.stop()
    assert call.done.result().vectors.tolist() == [[5, 1]]


async def test_a_group_waits_for_a_thread_so_that_none_waits_for_the_event_loop() -> None:
    engine = await started()
    first = await blocked(engine)
    rest = asyncio.create_task(engine.embed([text(3, 16)] * 10))  # more than a batch
    async with asyncio.timeout(5):
        while len(engine._groups) < 2:  # noqa: ASYNC110 - a group announces itself to nobody
            await asyncio.sleep(0)
    engine.counting.go.set()
    await asyncio.gather(first, rest)
    assert max(map(len, engine.counting.groups)) == 1
    await engine.stop()


async def test_what_is_less_than_a_batch_waits_for_company_until_a_thread_is_free(engine: Engine) -> None:
    first = await blocked(engine)
    early = asyncio.create_task(engine.embed([text(3, 2)]))
    for _ in range(10):
        await asyncio.sleep(0)
    late = asyncio.create_task(engine.embed([text(4, 2)]))
    await asyncio.sleep(0)
    engine.counting.go.set()
    await asyncio.gather(first, early, late)
    assert engine.batches == [1, 2]


async def test_a_text_is_cut_at_the_models_length_and_counted_whole(engine: Engine) -> None:
    batch = await engine.embed([text(3, 50), text(4, 120), text(5, 51)])
    assert [(cut.index, cut.tokens) for cut in batch.truncated] == [(1, 120), (2, 51)]
    assert (batch.prompt_tokens, batch.vectors[:, 1].tolist()) == (150, [50, 50, 50])
    with pytest.raises(JobFailed, match=r"texts\[1\] has 51 tokens, the model takes 50") as caught:
        await engine.embed([text(3, 50), text(5, 51)], truncate=False)
    assert (caught.value.code, caught.value.retryable) == ("text_too_long", False)


async def test_a_cancelled_call_takes_its_texts_out(engine: Engine) -> None:
    first = await blocked(engine)
    gone = asyncio.create_task(engine.embed([text(7, 5)] * 8))
    kept = asyncio.create_task(engine.embed([text(8, 2)]))
    for _ in range(5):  # the batcher now waits for a free thread
        await asyncio.sleep(0)
    gone.cancel()
    await asyncio.wait([gone])
    engine.counting.go.set()
    await asyncio.gather(first, kept)
    assert engine.counting.groups == [[1], [2]]


async def test_one_calls_failure_is_not_the_others(engine: Engine) -> None:
    first = await blocked(engine)
    calls = [asyncio.create_task(engine.embed([one])) for one in ("w5", "bad", "w6")]
    await asyncio.sleep(0)
    engine.counting.go.set()
    _, five, bad, six = await asyncio.gather(first, *calls, return_exceptions=True)
    assert isinstance(bad, JobFailed)
    assert (bad.code, bad.retryable) == ("engine_error", True)
    assert [five.vectors[0, 0], six.vectors[0, 0]] == [5, 6]  # type: ignore[union-attr]


async def test_memory_that_runs_out_names_the_option_to_turn(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(ids: Any, mask: Any) -> Any:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(engine.counting, "encode", full)
    with pytest.raises(JobFailed) as caught:
        await engine.embed([text(2, 3)])
    assert (caught.value.code, caught.value.retryable) == ("out_of_memory", True)
    assert "options.batch_tokens" in caught.value.message


async def test_a_batch_waits_for_company_only_as_long_as_it_may() -> None:
    engine = await started(batch_wait_ms=400)
    try:
        begun = time.monotonic()
        early = asyncio.create_task(engine.embed([text(3, 2)]))
        await asyncio.sleep(0.1)
        late = asyncio.create_task(engine.embed([text(4, 2)]))
        await asyncio.gather(early, late)
        assert engine.batches == [2]
        assert 0.4 <= time.monotonic() - begun < 5
        begun = time.monotonic()
        await engine.embed([text(3, 10), text(4, 10)])  # a full batch: nothing to wait for
        assert time.monotonic() - begun < 0.4
    finally:
        await engine.stop()


async def test_without_a_wait_bound_a_batch_waits_for_nobody(engine: Engine) -> None:
    await engine.embed([text(3, 1)])
    await engine.embed([text(4, 1)])
    assert engine.batches == [1, 1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"preset": "minilm"},
            "the weights have 2 dimensions and mean pooling; preset minilm is a model of 384 and mean",
        ),
        ({"dimensions": [2, 4]}, "the weights have 2 dimensions and mean pooling; dimensions has 4"),
        ({"prompts": {"query": "q"}, "pools_prompt": False}, "the weights' pooling leaves prompts out"),
    ],
)
def test_weights_that_are_not_what_the_entry_says_stop_the_start(changes: dict[str, Any], said: str) -> None:
    encoder = CountingEncoder()
    encoder.pools_prompt = changes.pop("pools_prompt", True)
    with pytest.raises(SettingsInvalid, match=said):
        check_weights(replace(Model("m", "embedding", "onnx", "", LIMIT, 4), **changes), encoder)


def test_padding_is_at_the_end_and_marked() -> None:
    ids, mask = padded([Text([5, 6, 7], 3), Text([8], 1)], pad_id=9)
    assert ids.tolist() == [[5, 6, 7], [8, 9, 9]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]

"""Key names and job ids."""

from __future__ import annotations

import re
import time
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

import common.keys as keys_module
from common.errors import NotFound
from common.keys import Keys, is_job_id, new_job_id
from common.scripts import FOLDER


def test_an_id_tells_its_shard() -> None:
    keys = Keys("jarvis", 256)
    for shard in ("00", "0a", "ff"):
        job_id = new_job_id(shard)
        assert is_job_id(job_id)
        assert keys.of_job(job_id) == f"jarvis:{{{shard}}}:"


def test_ids_have_the_form_that_the_contract_names() -> None:
    assert re.fullmatch(r"job_[0-9a-f]{2}[0-9a-hjkmnp-tv-z]{22}", new_job_id("3f"))


def test_ids_sort_by_the_time_of_their_making() -> None:
    first = new_job_id("00")
    made = time.monotonic()
    while time.monotonic() - made < 0.003:
        pass
    assert first < new_job_id("00")


def test_ten_thousand_ids_are_all_different() -> None:
    assert len({new_job_id("00") for _ in range(10_000)}) == 10_000


@pytest.mark.parametrize(
    "text",
    [
        "",
        "job_",
        "job_00",
        "nonsense",
        new_job_id("00")[:-1],
        new_job_id("00") + "a",
        new_job_id("00").upper(),
        "job_zz" + new_job_id("00")[6:],
        "jab_00" + new_job_id("00")[6:],
        new_job_id("00")[:-1] + "i",  # not in the alphabet
        new_job_id("00")[:-1] + "\n",
        new_job_id("00")[:-1] + "é",
    ],
)
def test_what_is_no_id_of_ours_has_no_shard(text: str) -> None:
    assert not is_job_id(text)
    with pytest.raises(NotFound):
        Keys("jarvis", 256).of_job(text)


@given(st.text())
def test_no_text_makes_the_check_of_an_id_fail(text: str) -> None:
    with suppress(NotFound):
        Keys("jarvis", 16).of_job(text)
        assert is_job_id(text)


def test_an_id_of_a_shard_that_is_not_there_is_not_ours() -> None:
    with pytest.raises(NotFound):
        Keys("jarvis", 16).of_job(new_job_id("10"))
    assert Keys("jarvis", 17).of_job(new_job_id("10")) == "jarvis:{10}:"


@given(st.text(min_size=1, max_size=40), st.integers(1, 256))
def test_a_queues_keys_share_the_hash_tag_of_its_shard(queue: str, shards: int) -> None:
    keys = Keys("jarvis", shards)
    prefix = keys.of_queue(queue)
    assert prefix in keys.prefixes()
    assert keys.queue(queue) == f"{prefix}q:{queue}:"
    tag = re.search(r"\{(.*?)\}", keys.queue(queue))
    assert tag is not None
    assert tag.group(1) == keys.shard_of_queue(queue)


def test_a_queues_shard_depends_on_its_name_alone() -> None:
    assert Keys("one", 16).shard_of_queue("generation:demo") == Keys("other", 16).shard_of_queue("generation:demo")
    assert len({Keys("jarvis", 16).shard_of_queue(f"generation:m{i}") for i in range(200)}) == 16


def test_the_scripts_build_only_key_names_that_the_table_lists() -> None:
    listed = str(keys_module.__doc__)
    for path in FOLDER.glob("*.lua"):
        for prefix, suffix in re.findall(r"\b([Pq]) \.\. '([a-z:]+)'", path.read_text()):
            name = suffix.strip(":").split(":")[0]
            assert re.search(rf"\b{name}\b", listed), f"{path.name} uses {prefix} {suffix}"

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from ops.bench.voice import THRESHOLD, voice
from workers.engines.faster_whisper_engine import split
from workers.engines.speech import RATE, Chunk, chunks, speech, windows


def options(**changes: Any) -> Any:
    from faster_whisper.vad import VadOptions

    given = {"threshold": THRESHOLD, "min_silence_duration_ms": 160, "max_speech_duration_s": 30.0}
    return VadOptions(**(given | changes))


SPOKEN = voice(50)


def all_chunks(*args: Any, **more: Any) -> list[Chunk]:
    return [chunk for together in chunks(*args, **more) for chunk in together]


def regions_of(*args: Any, **more: Any) -> list[tuple[int, int]]:
    return [region for block in speech(*args, **more) for region in block]


TWO = Chunk(((RATE, 3 * RATE), (10 * RATE, 11 * RATE)))  # two seconds, a pause, one second


def test_times_of_a_chunk_are_found_again_in_the_recording() -> None:
    assert (TWO.seek, TWO.end_s, TWO.duration_s) == (100, 11.0, 3.0)
    assert TWO.in_recording(0.5, 1.5) == (1.5, 2.5)
    assert TWO.in_recording(2.0, 2.5) == (10.0, 10.5), "what begins after the pause begins behind it"
    assert TWO.in_recording(0.0, 2.0) == (1.0, 3.0), "what ends at the pause ends before it"
    assert TWO.in_recording(0.0, 9.0) == (1.0, 11.0)


def test_a_word_stays_on_the_side_of_the_pause_where_most_of_it_is() -> None:
    assert TWO.word_in_recording(1.5, 2.1) == (2.5, 3.0)
    assert TWO.word_in_recording(1.9, 2.5) == (10.0, 10.5)


def test_a_chunk_s_sound_leaves_the_pause_out() -> None:
    samples = np.arange(12 * RATE, dtype=np.int64).astype(np.int16)
    cut = TWO.cut_from(samples)
    assert cut.dtype == np.float32
    assert len(cut) == 3 * RATE
    assert cut[2 * RATE] == np.float32(samples[10 * RATE]) / 32768


def test_chunks_are_whole_phrases_of_at_most_so_many_seconds_and_cover_all_speech() -> None:
    found = all_chunks(SPOKEN, 20, options(max_speech_duration_s=20.0))
    assert len(found) >= 3
    assert all(chunk.duration_s <= 20 for chunk in found)
    regions = [region for chunk in found for region in chunk.regions]
    assert regions == regions_of(SPOKEN, options(max_speech_duration_s=20.0))
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(regions))


def test_the_chunks_are_those_of_faster_whisper_s_own_pipeline() -> None:
    from faster_whisper.vad import collect_chunks, get_speech_timestamps

    sound = SPOKEN.astype(np.float32) / 32768
    theirs, _ = collect_chunks(sound, get_speech_timestamps(sound, options()), max_duration=30)
    ours = [chunk.cut_from(SPOKEN) for chunk in all_chunks(SPOKEN, 30, options())]
    assert [len(one) for one in ours] == [len(one) for one in theirs]
    assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_long_recording_is_cut_in_blocks_without_losing_or_doubling_speech() -> None:
    short = options(max_speech_duration_s=5.0)  # much less than a block, as it is outside of tests
    regions = regions_of(SPOKEN, short, block=12 * RATE)
    whole = regions_of(SPOKEN, short)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(regions))
    # Speech goes on at an end of a block, and is not cut there.
    assert any(start < 12 * RATE < end for start, end in whole)
    assert all(12 * RATE not in region for region in regions)
    spoken, again = (sum(end - start for start, end in some) for some in (whole, regions))
    assert abs(spoken - again) < 0.05 * spoken


def test_blocks_end_no_chunk_early() -> None:
    """Speech of several blocks makes as few chunks as that of one."""
    whole, again = (all_chunks(SPOKEN, 20, options(max_speech_duration_s=5.0), size * RATE) for size in (600, 11))
    assert len(again) == len(whole)


def test_silence_has_no_chunks() -> None:
    assert all_chunks(np.zeros(5 * RATE, np.int16), 30, options()) == []


def test_without_voice_detection_nothing_is_left_out_and_cuts_are_at_quiet_moments() -> None:
    sound = np.full(50 * RATE, 9000, np.int16)
    sound[int(17.5 * RATE) : 18 * RATE] = 0
    found = [chunk.regions[0] for chunk in all_chunks(sound, 20, None)]
    assert found[0][0] == 0
    assert 17.5 * RATE <= found[0][1] <= 18 * RATE
    assert found[-1][1] == len(sound)
    assert all(end == start for (_, end), (start, _) in itertools.pairwise(found))
    assert all(end - start <= 20 * RATE for start, end in found)


def test_windows_go_on_when_a_chunk_is_shorter_than_the_search_for_quiet() -> None:
    assert len(list(windows(np.ones(10 * RATE, np.int16), RATE))) >= 10


@pytest.mark.parametrize(
    ("tokens", "parts"),
    [
        ([1, 2], [(0.0, 5.0, [1, 2])]),
        ([100, 1, 2, 150, 150, 3, 200], [(0.0, 1.0, [1, 2]), (1.0, 2.0, [3])]),
        ([100, 1, 150, 150, 3], [(0.0, 1.0, [1]), (1.0, 5.0, [3])]),  # words behind the last time stamp stay
        ([100, 1, 1100], [(0.0, 5.0, [1])]),  # a time stamp behind the chunk's end
        ([150, 1, 120, 2], [(1.0, 1.0, [1]), (1.0, 5.0, [2])]),  # one that goes back
        ([], []),
        ([100, 150], []),
    ],
)
def test_tokens_are_cut_at_their_time_stamps(tokens: list[int], parts: list[Any]) -> None:
    assert split(tokens, 100, 5.0) == parts

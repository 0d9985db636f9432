from __future__ import annotations

from typing import Any

import pytest

from workers.engines.protocol import Heard, Segment, Word
from workers.transcript import Transcript, clock, srt, vtt


def segment(start: float, end: float, text: str, words: list[Word] | None = None) -> Segment:
    return Segment(start, end, text, [1, 2], -0.4, 1.1, 0.02, words)


def heard(seek: int, *segments: Segment) -> Heard:
    return Heard(seek, segments[-1].end, "en", list(segments))


CHUNKS = [
    heard(0, segment(0.0, 1.5, " Hello there."), segment(1.5, 3661.25, " A <b> & more.")),
    heard(366125, segment(3661.25, 3662.0, " End -->\n\nhere.")),
]


def filled(chunks: list[Heard] = CHUNKS, emitted: list[dict[str, Any]] | None = None, **params: Any) -> Transcript:
    made = Transcript(params, emitted or [], 3662.4)
    for chunk in chunks:
        made.take(chunk)
    return made


def test_the_text_is_that_of_all_segments_put_together_without_the_first_blank() -> None:
    made = filled()
    assert made.text == "Hello there. A <b> & more. End -->\n\nhere."
    assert made.text == "".join(one["text"] for one in made.segments)
    assert made.result().output == {"text": made.text, "language": "en", "duration": 3662.4}


def test_usage_is_in_whole_seconds_of_audio_rounded_up() -> None:
    assert filled().result().usage == {"audio_seconds": 3663}


def test_srt_is_numbered_has_commas_and_no_arrow_or_empty_line_in_its_text() -> None:
    assert filled(response_format="srt").result().output["srt"] == (
        "1\n00:00:00,000 --> 00:00:01,500\nHello there.\n\n"
        "2\n00:00:01,500 --> 01:01:01,250\nA <b> & more.\n\n"
        "3\n01:01:01,250 --> 01:01:02,000\nEnd -> here.\n"
    )


def test_vtt_has_its_header_points_and_escapes() -> None:
    assert filled(response_format="vtt").result().output["vtt"] == (
        "WEBVTT\n\n"
        "00:00:00.000 --> 00:00:01.500\nHello there.\n\n"
        "00:00:01.500 --> 01:01:01.250\nA &lt;b> &amp; more.\n\n"
        "01:01:01.250 --> 01:01:02.000\nEnd -> here.\n"
    )


def test_subtitles_of_silence_are_empty_and_well_formed() -> None:
    assert srt([]) == ""
    assert vtt([]) == "WEBVTT\n\n"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "00:00:00.000"), (59.9996, "00:01:00.000"), (0.0004, "00:00:00.000"), (360_000.5, "100:00:00.500")],
)
def test_a_clock_carries_over_and_does_not_end(seconds: float, shown: str) -> None:
    assert clock(seconds, ".") == shown


def test_verbose_json_has_what_openai_s_has() -> None:
    output = filled(response_format="verbose_json", temperature=0.2).result().output
    assert output.keys() == {"task", "language", "duration", "text", "segments"}
    assert output["segments"][1] == {
        "id": 1, "seek": 0, "start": 1.5, "end": 3661.25, "text": " A <b> & more.", "tokens": [1, 2],
        "temperature": 0.2, "avg_logprob": -0.4, "compression_ratio": 1.1, "no_speech_prob": 0.02,
    }  # fmt: skip


def test_words_come_as_one_list_and_segments_only_when_asked_for() -> None:
    words = [Word(" Hi", 0.0, 0.4, 0.9), Word(" you", 0.4, 1.0, 0.8)]
    chunk = heard(0, segment(0.0, 1.0, " Hi you", words))
    only = filled([chunk], response_format="verbose_json", timestamp_granularities=["word"]).result().output
    assert only["words"][1] == {"word": " you", "start": 0.4, "end": 1.0, "probability": 0.8}
    assert "segments" not in only
    both = filled([chunk], response_format="verbose_json", timestamp_granularities=["word", "segment"]).result()
    assert len(both.output["words"]) == 2
    assert "words" not in both.output["segments"][0]


@pytest.mark.parametrize("shown", range(4))
def test_a_resumed_transcript_is_the_same_whatever_number_of_segments_was_emitted(shown: int) -> None:
    whole = filled(response_format="verbose_json")
    resumed = Transcript({"response_format": "verbose_json"}, whole.segments[:shown], 3662.4)
    new = [one for chunk in CHUNKS if chunk.seek >= resumed.from_seek for one in resumed.take(chunk)]
    assert new == whole.segments[shown:]
    assert resumed.result() == whole.result()


def test_a_chunk_that_is_heard_again_a_little_differently_doubles_no_words() -> None:
    whole = filled()
    resumed = Transcript({}, whole.segments[:1], 3662.4)
    again = heard(0, segment(0.0, 0.9, " Hello"), segment(0.9, 1.5, " there."), segment(1.5, 3661.25, " A <b> & more."))
    assert [one["text"] for one in resumed.take(again)] == [" A <b> & more."]


def test_segments_without_length_come_once_too() -> None:
    chunk = heard(0, segment(0.0, 2.0, " a"), segment(2.0, 2.0, " b"), segment(2.0, 2.0, " c"), segment(2.0, 2.0, " d"))
    whole = filled([chunk])
    for shown in range(5):
        assert [one["text"] for one in Transcript({}, whole.segments[:shown], 2.0).take(chunk)] == [
            one["text"] for one in whole.segments[shown:]
        ]


def test_segments_of_one_run_that_overlap_are_all_kept() -> None:
    chunk = heard(0, segment(0.0, 2.0, " one"), segment(1.0, 3.0, " two"))
    assert [one["text"] for one in filled([chunk]).segments] == ["one", " two"]


def test_a_resumed_job_goes_on_in_the_language_it_was_begun_in() -> None:
    assert Transcript({"language": None}, filled().segments, 1.0).language == "en"
    assert Transcript({"language": "de"}, [], 1.0).language == "de"

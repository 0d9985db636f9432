"""The official SDK's audio calls against a running stack; the model's weights are random, so its words are too."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest

from ops.bench.voice import voice, wav

SPOKEN = ("spoken.wav", wav(voice(40)))


@pytest.fixture(scope="module")
def text(stack: str) -> str:
    """What the model hears, by a plain job."""
    parts: Any = {"file": SPOKEN, "job": (None, '{"kind": "transcription", "model": "ears"}')}
    answer = httpx.post(f"{stack}/v1/jobs", files=parts, headers={"Prefer": "wait=60"}, trust_env=False, timeout=70)
    said: str = answer.json()["result"]["output"]["text"]
    assert said.strip()
    return said


def test_a_transcription_is_what_the_job_says(client: openai.OpenAI, text: str) -> None:
    made = client.audio.transcriptions.create(model="ears", file=SPOKEN)
    assert made.text == text
    assert made.usage is not None
    assert made.usage.type == "duration"
    assert made.usage.seconds == 40


def test_a_streamed_transcription_comes_segment_by_segment(client: openai.OpenAI, text: str) -> None:
    events = list(client.audio.transcriptions.create(model="ears", file=SPOKEN, stream=True))
    deltas = [event.delta for event in events if event.type == "transcript.text.delta"]
    assert len(deltas) > 1
    assert "".join(deltas) == text
    assert events[-1].type == "transcript.text.done"
    assert events[-1].text == text


def test_every_form_of_a_transcript(client: openai.OpenAI) -> None:
    granularities: Any = ["word", "segment"]
    verbose = client.audio.transcriptions.create(
        model="ears", file=SPOKEN, language="en", response_format="verbose_json", timestamp_granularities=granularities
    )
    assert verbose.language == "en"
    assert verbose.duration == 40
    assert verbose.segments
    assert verbose.words
    assert verbose.segments[0].start < verbose.segments[-1].end <= 40
    srt = client.audio.transcriptions.create(model="ears", file=SPOKEN, language="en", response_format="srt")
    assert srt.startswith("1\n00:00:")
    vtt = client.audio.transcriptions.create(model="ears", file=SPOKEN, language="en", response_format="vtt")
    assert vtt.startswith("WEBVTT\n\n00:00:")
    plain = client.audio.transcriptions.create(model="ears", file=SPOKEN, language="en", response_format="text")
    assert plain.strip()


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # by OpenAI, for its own service
def test_a_translation_is_another_task_for_the_same_model(client: openai.OpenAI) -> None:
    assert client.audio.translations.create(model="ears", file=SPOKEN).text.strip()


@pytest.mark.parametrize(
    ("wrong", "param", "error"),
    [
        ({"model": "demo"}, "model", openai.NotFoundError),
        ({"language": "klingon"}, "language", openai.BadRequestError),
        ({"temperature": 7}, "temperature", openai.BadRequestError),
        ({"response_format": "pdf"}, "response_format", openai.BadRequestError),
        ({"include": ["logprobs"]}, "include", openai.BadRequestError),
        ({"extra_body": {"nonsense": "1"}}, "nonsense", openai.BadRequestError),
        ({"file": ("empty.wav", b"")}, "file", openai.BadRequestError),
        ({"file": ("text.wav", b"I am no recording, but a text.")}, None, openai.BadRequestError),
    ],
)
def test_what_is_wrong_with_a_recording_or_its_fields_is_named(
    client: openai.OpenAI, wrong: dict[str, Any], param: str | None, error: type[openai.APIStatusError]
) -> None:
    asked: Any = {"model": "ears", "file": SPOKEN, **wrong}
    with pytest.raises(error) as caught:
        client.audio.transcriptions.create(**asked)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"

"""The input and the parameters of a job, kind by kind, field by field."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, PlainValidator, ValidationInfo, field_validator, model_validator

from common.languages import LANGUAGES
from producer.conversation import Message
from producer.strict import Strict
from producer.structure import CHOICES, TOOL_CHOICE, Choices, ResponseFormat, Tool, ToolChoice

SEED_MAX = 2**63 - 1
STOPS = "a text or up to 4 texts, each of 1 to 64 characters"


def _stops(value: Any) -> str | list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or len(texts) > 4:
        raise ValueError(f"allowed: {STOPS}")
    if not all(isinstance(text, str) and 1 <= len(text) <= 64 for text in texts):
        raise ValueError(f"allowed: {STOPS}")
    return value  # type: ignore[no-any-return]


# Checked by a function, since pydantic names a member of a union as if it were a field of the request.
Stops = Annotated[str | list[str], PlainValidator(_stops, json_schema_input_type=str | list[str])]


class GenerationInput(Strict):
    """Either `prompt` or `messages`."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["prompt"]}, {"required": ["messages"]}]})

    prompt: str | None = Field(None, min_length=1, description="Text to go on from, as it is.")
    messages: list[Message] | None = Field(
        None,
        min_length=1,
        max_length=1000,
        description="A conversation; the model's chat template is applied.",
    )

    @model_validator(mode="after")
    def _either(self) -> GenerationInput:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("either prompt or messages is required, not both")
        return self


class GenerationParams(Strict):
    """How to sample; what is left out is the model's default (see the catalogue)."""

    max_tokens: int | None = Field(
        None, ge=1, description="Most tokens to generate; with the prompt's they fit the model."
    )
    min_tokens: int | None = Field(None, ge=0, description="Do not end before so many tokens; at most max_tokens.")
    ignore_eos: bool | None = Field(None, description="Go on to max_tokens whatever the model thinks of it.")
    temperature: float | None = Field(None, ge=0, le=2, description="0 always takes the likeliest token.")
    top_p: float | None = Field(
        None, gt=0, le=1, description="Sample from the likeliest tokens of this total probability."
    )
    top_k: int | None = Field(
        None, ge=-1, le=1_000_000, description="Sample from so many likeliest tokens; -1 or 0: from all."
    )
    min_p: float | None = Field(
        None, ge=0, le=1, description="Leave out tokens less likely than this share of the likeliest."
    )
    presence_penalty: float | None = Field(None, ge=-2, le=2, description="Against tokens that have come up already.")
    frequency_penalty: float | None = Field(
        None, ge=-2, le=2, description="Against tokens by how often they have come up."
    )
    repetition_penalty: float | None = Field(None, gt=0, le=2, description="Above 1: against repetition.")
    seed: int | None = Field(None, ge=0, le=SEED_MAX, description="Makes sampling repeatable.")
    stop: Stops | None = Field(None, description="Up to 4 texts of at most 64 characters that end the answer.")
    n: int | None = Field(
        None, ge=1, le=8, description="So many answers, as `choices`; more than 1 needs a temperature above 0."
    )
    logprobs: bool | None = Field(None, description="Tell the log probability of each token.")
    top_logprobs: int | None = Field(
        None, ge=0, le=20, description="With logprobs: those of so many likeliest tokens at each place, too."
    )
    response_format: ResponseFormat | None = Field(
        None, description="JSON of a schema or any JSON object instead of text."
    )
    regex: str | None = Field(None, min_length=1, max_length=4096, description="The answer matches this as a whole.")
    choice: Choices | None = Field(None, description=f"The answer is one of {CHOICES}.")
    grammar: str | None = Field(
        None, min_length=1, max_length=65_536, description="The answer is of this grammar (EBNF or Lark)."
    )
    tools: list[Tool] | None = Field(
        None, min_length=1, max_length=128, description="Functions the model may call; only with input.messages."
    )
    tool_choice: ToolChoice | None = Field(
        None, validate_default=True, description=f"With tools: {TOOL_CHOICE}; auto if left out."
    )

    parallel_tool_calls: bool | None = Field(None, description="False: one call at most.")

    @field_validator("min_tokens")
    @classmethod
    def _at_most_max_tokens(cls, value: int | None, info: ValidationInfo) -> int | None:
        most = info.data.get("max_tokens")
        if value and value > (most or 1):
            raise ValueError(f"at most max_tokens, which is {most}" if most else "only together with max_tokens")
        return value

    @field_validator("top_logprobs")
    @classmethod
    def _with_logprobs(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and not info.data.get("logprobs"):
            raise ValueError("only together with logprobs: true")
        return value

    @field_validator("regex", "choice", "grammar")
    @classmethod
    def _one_structure(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None and (other := _structure(info.data)):
            raise ValueError(f"not together with {other}: an answer has one structure")
        return value

    @field_validator("tools")
    @classmethod
    def _tools_apart(cls, value: list[Tool] | None) -> list[Tool] | None:
        names = [tool.function.name for tool in value or []]
        if len(set(names)) < len(names):
            raise ValueError("two of them have the same name")
        return value

    @field_validator("tool_choice")
    @classmethod
    def _of_the_tools(cls, value: Any, info: ValidationInfo) -> Any:
        names = [tool.function.name for tool in info.data.get("tools") or []]
        if value is not None and not names:
            raise ValueError("only together with tools")
        if isinstance(value, dict) and value["function"]["name"] not in names:
            raise ValueError(f"no such tool; there are {', '.join(names)[:200]}")
        if names and value != "none" and (other := _structure(info.data)):
            raise ValueError(f"none, or without {other}: a tool's call and that exclude each other")
        return value


def _structure(params: dict[str, Any]) -> str | None:
    """The name of the parameter, of those checked so far, that gives the answer a structure."""
    wanted = params.get("response_format")
    if wanted is not None and wanted.type != "text":
        return "response_format"
    return next((name for name in ("regex", "choice", "grammar") if params.get(name) is not None), None)


class EmbeddingInput(Strict):
    """Texts to embed, in order."""

    texts: list[Annotated[str, Field(min_length=1, max_length=32_768)]] = Field(
        min_length=1,
        max_length=2048,
        description="1 to 2,048 texts of 1 to 32,768 characters; past the model's length they are cut.",
    )


class EmbeddingParams(Strict):
    """How to embed."""

    normalize: bool | None = Field(None, description="Scale each vector to length 1; some models (minilm) always do.")
    dimensions: int | None = Field(
        None,
        ge=1,
        description="Cut each vector to its first numbers and scale it to length 1: a size that the catalogue allows.",
    )
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="Vectors as numbers, or as base64 of float32, little-endian (a quarter of the bytes)."
    )
    input_type: str | None = Field(
        None,
        max_length=32,
        description="What the texts are, e.g. query or passage: the catalogue's prompt of that name goes before each.",
    )
    truncate: bool | None = Field(
        None,
        description="Cut texts that are longer than the model takes and say which (default), or refuse them (false).",
    )


class TranscriptionInput(Strict):
    """A recording: base64 here, or a file in the part `file` of multipart/form-data."""

    audio: str | None = Field(
        None,
        description="The recording in base64: wav, mp3, flac, ogg, m4a, mp4, webm, … For what does not fit a JSON body,"
        " send the file as a part of a form.",
    )


class TranscriptionParams(Strict):
    """How to hear it, and in which form to write it down."""

    language: str | None = Field(
        None,
        description="Code of the language spoken (en, de, …); left out, it is heard from the first half minute.",
        json_schema_extra={"enum": [*LANGUAGES, None]},
    )
    task: Literal["transcribe", "translate"] | None = Field(
        None, description="transcribe writes what is said, translate writes it in English."
    )
    prompt: str | None = Field(
        None, max_length=4096, description="Text in the style and with the names to expect; its last 223 tokens count."
    )
    temperature: float | None = Field(None, ge=0, le=1, description="0 searches for the likeliest text.")
    response_format: Literal["json", "text", "srt", "vtt", "verbose_json"] | None = Field(
        None,
        description="What the result holds beside `text`: subtitles as `srt` or `vtt`, `segments` and `words` with"
        " verbose_json. json and text are the same here.",
    )
    timestamp_granularities: list[Literal["word", "segment"]] | None = Field(
        None, min_length=1, max_length=2, description="With verbose_json: what has times, segments if left out."
    )
    vad: bool | None = Field(
        None, description="Leave out what is no speech (the default); false hears all, and cuts at quiet moments."
    )

    @field_validator("language")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        if value is not None and value not in LANGUAGES:
            raise ValueError(f"allowed: {', '.join(LANGUAGES)}")
        return value

    @field_validator("timestamp_granularities")
    @classmethod
    def _only_verbose(cls, value: list[str] | None, info: ValidationInfo) -> list[str] | None:
        if value is not None and info.data.get("response_format") != "verbose_json":
            raise ValueError("only together with response_format verbose_json")
        return value

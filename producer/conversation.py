"""The turns of a conversation as they may be sent: text, images, the tools' calls and what they answered."""

from __future__ import annotations

import binascii
import re
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, ValidationInfo, field_validator

from producer.strict import Strict

MOST_PARTS = 64
MOST_IMAGES = 8
LONGEST_IMAGE = 8 * 1024 * 1024  # bytes, decoded
MOST_CALLS = 32
FUNCTION_NAME = r"^[A-Za-z0-9_-]{1,64}$"
CONTENT = f'a text or 1 to {MOST_PARTS} parts: {{"type": "text", "text"}} or {{"type": "image_url", "image_url"}}'
IMAGE = f"data:image/png, jpeg, webp or gif;base64,… of at most {LONGEST_IMAGE:,} bytes; nothing is fetched"
_IMAGE = re.compile(r"data:image/(png|jpeg|webp|gif);base64,")


def _content(value: Any) -> Any:
    """A text, or parts of which each is well-formed."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not 1 <= len(value) <= MOST_PARTS:
        raise ValueError(f"allowed: {CONTENT}")
    for number, part in enumerate(value):
        _check_part(number, part)
    if len(images(value)) > MOST_IMAGES:
        raise ValueError(f"allowed: at most {MOST_IMAGES} images in a message")
    return value


def _check_part(number: int, part: Any) -> None:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in ("text", "image_url") or part.keys() != {"type", kind}:
        raise ValueError(f"part {number}: allowed: {CONTENT}")
    if kind == "text":
        if not isinstance(part["text"], str):
            raise ValueError(f"part {number}: its text must be a string")
    elif not (isinstance(part["image_url"], dict) and part["image_url"].keys() == {"url"}):
        raise ValueError(f'part {number}: image_url must be {{"url": …}}')
    elif not _is_image(part["image_url"]["url"]):
        raise ValueError(f"part {number}: allowed: {IMAGE}")


def _is_image(url: Any) -> bool:
    if not isinstance(url, str) or not (head := _IMAGE.match(url)) or len(url) > LONGEST_IMAGE * 4 // 3 + 64:
        return False
    try:
        decoded = binascii.a2b_base64(url[head.end() :].encode(), strict_mode=True)
    except ValueError:
        return False
    return 0 < len(decoded) <= LONGEST_IMAGE


# Checked by a function, since pydantic names a member of a union as if it were a field of the request.
Content = Annotated[Any, PlainValidator(_content, json_schema_input_type=str | list[dict[str, Any]])]


def texts(content: Any) -> list[str]:
    """The texts of a message's content."""
    if isinstance(content, list):
        return [part["text"] for part in content if part["type"] == "text"]
    return [content] if content else []


def images(content: Any) -> list[str]:
    """The addresses of the images in a message's content."""
    if not isinstance(content, list):
        return []
    return [part["image_url"]["url"] for part in content if part["type"] == "image_url"]


class CalledFunction(Strict):
    """Which function, and its arguments as the model wrote them."""

    name: str = Field(pattern=FUNCTION_NAME)
    arguments: str = Field(description="JSON, as a string.")


class ToolCall(Strict):
    """A call that an earlier answer made."""

    id: str = Field(min_length=1, max_length=128)
    type: Literal["function"]
    function: CalledFunction


class Message(Strict):
    """One turn of a conversation. What a tool answered has the role `tool` and the call's id."""

    role: Literal["system", "user", "assistant", "tool"]
    tool_calls: list[ToolCall] | None = Field(None, min_length=1, max_length=MOST_CALLS)
    tool_call_id: str | None = Field(None, min_length=1, max_length=128)
    content: Content | None = Field(
        None,
        validate_default=True,
        description="A text, or parts of text and images (data: URLs, for models with vision). Without it only an "
        "assistant's turn that calls tools.",
    )

    @field_validator("tool_calls")
    @classmethod
    def _of_the_assistant(cls, value: list[ToolCall] | None, info: ValidationInfo) -> list[ToolCall] | None:
        if value is not None and info.data.get("role") != "assistant":
            raise ValueError("only in a turn of the role assistant")
        return value

    @field_validator("tool_call_id")
    @classmethod
    def _of_a_tool(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("role") not in ("tool", None):
            raise ValueError("only in a turn of the role tool")
        return value

    @field_validator("content", mode="before")
    @classmethod
    def _said(cls, value: Any, info: ValidationInfo) -> Any:
        if value is None and not info.data.get("tool_calls"):
            raise ValueError("it is required")
        if isinstance(value, list) and info.data.get("role") not in ("user", None):
            raise ValueError("parts are for the role user; others have a text")
        return value

from __future__ import annotations

import base64
from typing import Any

import pytest
from pydantic import ValidationError

from producer.conversation import LONGEST_IMAGE, Message, images, texts

PNG = "data:image/png;base64,"


def with_image(url: Any) -> dict[str, Any]:
    return {
        "role": "user",
        "content": [{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {"url": url}}],
    }


def test_a_message_may_have_texts_and_images() -> None:
    message = Message.model_validate(with_image(f"{PNG}AAAA"))
    assert texts(message.content) == ["see"]
    assert images(message.content) == [f"{PNG}AAAA"]
    assert texts("plain") == ["plain"]
    assert images("plain") == texts(None) == []


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/a.png",
        "file:///etc/passwd",
        "data:image/svg+xml;base64,AAAA",
        f"{PNG}no base64",
        f"{PNG}AAA",
        PNG,
        f"{PNG}{base64.b64encode(bytes(LONGEST_IMAGE + 1)).decode()}",
        5,
        None,
    ],
)
def test_only_an_image_of_bounded_size_that_came_along_is_taken(url: Any) -> None:
    with pytest.raises(ValidationError, match="part 1: allowed: data:image/png"):
        Message.model_validate(with_image(url))


def test_a_message_has_no_crowd_of_images() -> None:
    part = {"type": "image_url", "image_url": {"url": f"{PNG}AAAA"}}
    with pytest.raises(ValidationError, match="at most 8 images"):
        Message.model_validate({"role": "user", "content": [part] * 9})

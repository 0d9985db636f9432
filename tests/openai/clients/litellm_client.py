"""LiteLLM's client against the address in argv: what it gets, as JSON. Runs in the clients' own environment."""

from __future__ import annotations

import json
import sys
from typing import Any

import litellm

ASKED = "What is a lease?"


def main(base_url: str) -> dict[str, Any]:
    """Chat whole, streamed and as a response; embed."""
    here: Any = {"api_base": base_url, "api_key": "not checked yet", "num_retries": 0}
    chat: Any = {"model": "openai/demo", "messages": [{"role": "user", "content": ASKED}], "max_tokens": 20, **here}
    whole: Any = litellm.completion(**chat)
    stream: Any = litellm.completion(**chat, stream=True)
    response: Any = litellm.responses(model="openai/demo", input=ASKED, max_output_tokens=20, **here)
    embedded: Any = litellm.embedding(model="openai/minilm", input=["A lane", "A lease"], **here)
    return {
        "whole": whole.choices[0].message.content,
        "usage": {"output_tokens": whole.usage.completion_tokens},
        "pieces": [chunk.choices[0].delta.content or "" for chunk in stream],
        "response": "".join(part.text for item in response.output for part in item.content),
        "vectors": [one["embedding"] for one in embedded.data],
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))

"""LangChain's client against the address in argv: what it gets, as JSON. Runs in the clients' own environment."""

from __future__ import annotations

import json
import sys
from typing import Any

from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, SecretStr

ASKED = "What is a lease?"


class Ticket(BaseModel):
    """What an answer is to be."""

    urgent: bool


def main(base_url: str) -> dict[str, Any]:
    """Chat whole, streamed, structured, with a tool and as a response; embed."""
    key = SecretStr("not checked yet")
    asked: Any = {"model": "demo", "base_url": base_url, "api_key": key, "max_retries": 0}
    chat = ChatOpenAI(**asked, max_completion_tokens=20)
    roomy = ChatOpenAI(**asked, max_completion_tokens=100)
    responses = ChatOpenAI(**asked, max_completion_tokens=20, use_responses_api=True)
    whole = chat.invoke(ASKED)
    pieces = [piece.content for piece in chat.stream(ASKED)]
    called = roomy.bind_tools([Ticket], tool_choice="Ticket").invoke(ASKED)
    structured: Any = roomy.with_structured_output(Ticket, method="json_schema").invoke(ASKED)
    # Its own tokens would mean nothing to this model: that is what check_embedding_ctx_length would send.
    embeddings: Any = OpenAIEmbeddings(
        model="minilm", base_url=base_url, api_key=key, max_retries=0, check_embedding_ctx_length=False
    )
    return {
        "whole": whole.content,
        "usage": dict(whole.usage_metadata or {}),
        "pieces": pieces,
        "called": called.tool_calls[0]["args"],
        "structured": structured.model_dump(),
        "response": responses.invoke(ASKED).text,
        "response_pieces": [piece.text for piece in responses.stream(ASKED)],
        "vectors": embeddings.embed_documents(["A lane", "A lease"]),
        "query": embeddings.embed_query("A lane"),
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))

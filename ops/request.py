"""Turns what was typed into a request: the input from words, files or stdin, and KEY=VALUE pairs.

What cannot be sent at all is refused here, as a usage error; what a field may hold is the server's to say.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import typer


def job_input(kind: str, text: list[str], prompt: str | None, messages: str | None) -> dict[str, Any]:
    ways = [way for way in (text or None, prompt, messages) if way is not None]
    if len(ways) != 1:
        raise typer.BadParameter("give the input in one way: TEXT, --prompt or --messages")
    if messages is not None:
        return {"messages": _messages(messages)}
    if kind == "embedding":
        return {"texts": text or _read(prompt or "").splitlines()}
    return {"prompt": " ".join(text) if text else _read(prompt or "")}


def _read(prompt: str) -> str:
    return sys.stdin.read() if prompt == "-" else prompt


def _messages(source: str) -> Any:
    try:
        document = json.loads(sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8"))
    except OSError as error:
        raise typer.BadParameter(f"--messages {source}: {error.strerror}") from None
    except ValueError as error:
        raise typer.BadParameter(f"--messages {source} is not JSON: {error}") from None
    return document.get("messages", document) if isinstance(document, dict) else document


def texts_by_name(pairs: list[str] | None) -> dict[str, str]:
    split = [pair.partition("=") for pair in pairs or []]
    for name, equals, _ in split:
        if not name or not equals:
            raise typer.BadParameter(f"{name!r} is not KEY=VALUE")
    return {name: value for name, _, value in split}


def values_by_name(pairs: list[str] | None) -> dict[str, Any]:
    return {name: _json_or_text(value) for name, value in texts_by_name(pairs).items()}


def _json_or_text(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


def sendable(body: dict[str, Any]) -> dict[str, Any]:
    try:
        json.dumps(body, allow_nan=False)
    except ValueError:
        raise typer.BadParameter("a number is nan or infinite; JSON has no such number") from None
    return body


def ascii_key(key: str | None) -> str | None:
    if key is not None and not (key.isascii() and key.isprintable() and key):
        raise typer.BadParameter("--idempotency-key must be printable ASCII")
    return key


def given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}

"""The items of a conversation: read from a request, kept as they are told again, and as the turns that a model sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from common.errors import InvalidField

Item = dict[str, Any]

MOST_ITEMS = 1000
ROLES = ("user", "assistant", "system", "developer")
PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}
#: Fields that come back with items which an answer had, and that say nothing to a model.
TOLD = ("id", "status", "type", "phase", "encrypted_content", "annotations", "logprobs", "caller")
TEXTS = "a text, or a list of items"
OF_USER = '{"type": "input_text", "text"} or {"type": "input_image", "image_url"}'
OF_ASSISTANT = '{"type": "output_text", "text"} or {"type": "refusal", "refusal"}'


def read_items(given: Any) -> list[Item]:
    """The items of `input`, in one form; raises InvalidField naming what is wrong."""
    if isinstance(given, str):
        return [_message("input", {"role": "user", "content": given})]
    if not isinstance(given, list) or not given:
        raise InvalidField("input", _short(given), TEXTS)
    if len(given) > MOST_ITEMS:
        raise InvalidField("input", f"a list of {len(given)}", f"at most {MOST_ITEMS:,} items")
    return [_item(f"input[{number}]", item) for number, item in enumerate(given)]


def named(items: list[Item], name: str) -> list[Item]:
    """The items, each with an id: its own, or one that is made of `name` and its place."""
    return [{"id": f"{PREFIXES[item['type']]}_{name}_{number}", **item} for number, item in enumerate(items)]


def messages_of(items: list[Item]) -> list[dict[str, Any]]:
    """The turns of a conversation as a job has them. Reasoning is not told again: chat templates leave it out."""
    turns: list[dict[str, Any]] = []
    for item in items:
        if item["type"] == "message":
            turns.append(_turn(item))
        elif item["type"] == "function_call":
            _calling(turns).append(_call(item))
        elif item["type"] == "function_call_output":
            turns.append({"role": "tool", "tool_call_id": item["call_id"], "content": _text(item["output"])})
    return turns


def _calling(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    # Calls stand in one turn with what was said before them and with each other.
    if not turns or turns[-1]["role"] != "assistant":
        turns.append({"role": "assistant"})
    turn = turns[-1]
    if turn.get("content") == "":
        del turn["content"]
    calls: list[dict[str, Any]] = turn.setdefault("tool_calls", [])
    return calls


def _call(item: Item) -> dict[str, Any]:
    function = {"name": item["name"], "arguments": item["arguments"]}
    return {"id": item["call_id"], "type": "function", "function": function}


def _turn(item: Item) -> dict[str, Any]:
    role = "system" if item["role"] == "developer" else item["role"]
    parts = item["content"]
    if not any(part["type"] == "input_image" for part in parts):
        return {"role": role, "content": _text(parts)}
    return {"role": role, "content": [_shown(part) for part in parts]}


def _shown(part: Item) -> dict[str, Any]:
    # What `detail` asks for, a small or a large picture, is the model's processor's to decide.
    if part["type"] == "input_image":
        return {"type": "image_url", "image_url": {"url": part["image_url"]}}
    return {"type": "text", "text": part["text"]}


def _text(content: str | list[Item]) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part["refusal"] if part["type"] == "refusal" else part["text"] for part in content)


# -- reading


def _item(path: str, given: Any) -> Item:
    if not isinstance(given, dict):
        raise InvalidField(path, _short(given), "an item: an object with a type")
    kind = given.get("type", "message" if "role" in given else None)
    read = READERS.get(kind) if isinstance(kind, str) else None
    if read is None:
        raise InvalidField(f"{path}.type", _short(kind), f"one of {', '.join(READERS)}")
    item = read(path, given)
    if isinstance(given.get("id"), str) and 0 < len(given["id"]) <= 128:
        item["id"] = given["id"]
    return item


def _message(path: str, given: Item) -> Item:
    _only(path, given, "role", "content")
    role = given.get("role")
    if role not in ROLES:
        raise InvalidField(f"{path}.role", _short(role), f"one of {', '.join(ROLES)}")
    content = given.get("content")
    kind = "output_text" if role == "assistant" else "input_text"
    parts = [{"type": kind, "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or not parts:
        raise InvalidField(f"{path}.content", _short(content), "a text, or a list of parts")
    read = [_part(f"{path}.content[{number}]", part, role) for number, part in enumerate(parts)]
    return {"type": "message", "role": role, "status": "completed", "content": read}


def _part(path: str, given: Any, role: str) -> Item:
    kind = given.get("type") if isinstance(given, dict) else None
    if kind == "input_image" and role == "user":
        return _image(path, given)
    if kind == "refusal" and role == "assistant":
        _only(path, given, "refusal")
        return {"type": kind, "refusal": _string(path, given, "refusal")}
    if kind not in (("output_text", "input_text") if role == "assistant" else ("input_text",)):
        allowed = OF_ASSISTANT if role == "assistant" else OF_USER if role == "user" else "input_text"
        raise InvalidField(f"{path}.type", _short(kind), allowed)
    _only(path, given, "text", "prompt_cache_breakpoint")
    text = _string(path, given, "text")
    if role == "assistant":
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"type": "input_text", "text": text}


def _image(path: str, given: Item) -> Item:
    _only(path, given, "image_url", "detail", "prompt_cache_breakpoint")
    detail = given.get("detail") or "auto"
    if detail not in ("auto", "low", "high", "original"):
        raise InvalidField(f"{path}.detail", _short(detail), "auto, low, high or original")
    return {"type": "input_image", "detail": detail, "image_url": _string(path, given, "image_url")}


def _function_call(path: str, given: Item) -> Item:
    _only(path, given, "call_id", "name", "arguments")
    texts = {name: _string(path, given, name) for name in ("call_id", "name", "arguments")}
    return {"type": "function_call", **texts, "status": "completed"}


def _function_call_output(path: str, given: Item) -> Item:
    _only(path, given, "call_id", "output")
    output = given.get("output")
    if isinstance(output, list) and output:
        output = [_part(f"{path}.output[{number}]", part, "tool") for number, part in enumerate(output)]
    elif not isinstance(output, str):
        raise InvalidField(f"{path}.output", _short(output), "a text, or a list of input_text")
    call_id = _string(path, given, "call_id")
    return {"type": "function_call_output", "call_id": call_id, "output": output, "status": "completed"}


def _reasoning(path: str, given: Item) -> Item:
    _only(path, given, "summary", "content")
    texts = {name: _reasoned(f"{path}.{name}", given.get(name), kind) for name, kind in REASONED.items()}
    return {"type": "reasoning", **texts}


REASONED = {"summary": "summary_text", "content": "reasoning_text"}


def _reasoned(path: str, given: Any, kind: str) -> list[Item]:
    parts = given or []
    well = isinstance(parts, list) and all(isinstance(one, dict) and isinstance(one.get("text"), str) for one in parts)
    if not well:
        raise InvalidField(path, _short(given), f'a list of {{"type": "{kind}", "text"}}')
    return [{"type": kind, "text": one["text"]} for one in parts]


READERS: dict[str, Callable[[str, Item], Item]] = {
    "message": _message,
    "function_call": _function_call,
    "function_call_output": _function_call_output,
    "reasoning": _reasoning,
}


def _only(path: str, given: Item, *names: str) -> None:
    # SDKs send items back with every field that they know, most of them empty.
    for name, value in given.items():
        if name not in (*names, *TOLD) and value not in (None, [], {}, False):
            raise InvalidField(f"{path}.{name}", _short(value), f"one of {', '.join(names)}")


def _string(path: str, given: Item, name: str) -> str:
    value = given.get(name)
    if not isinstance(value, str):
        raise InvalidField(f"{path}.{name}", _short(value), "a text")
    return value


def _short(value: Any) -> Any:
    return value if isinstance(value, str | int | float) or value is None else type(value).__name__

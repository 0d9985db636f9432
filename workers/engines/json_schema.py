"""JSON schemas as xgrammar can keep to them.

xgrammar 0.2 lets raw control characters, which JSON forbids, into a string whose length is bounded
(mlc-ai/xgrammar#800): one tab from the model and the answer does not parse. Its patterns do not, so a bound becomes
a pattern of the same meaning. Either way such a string holds no escapes: no quotation mark, no line end.
"""

from __future__ import annotations

from typing import Any

#: Keys whose values are schemas by name, so that a name may look like a keyword.
BY_NAME = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
#: Keys whose values are data, whatever they look like.
DATA = ("const", "enum", "default", "examples")


def with_patterns(schema: Any) -> Any:
    """The schema with each bounded string's length as a pattern."""
    if isinstance(schema, list):
        return [with_patterns(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    mended = {key: _value(key, value) for key, value in schema.items()}
    types = mended.get("type")
    bounded = "minLength" in mended or "maxLength" in mended
    if bounded and "string" in (types if isinstance(types, list) else [types]) and not _has_pattern(mended):
        least, most = mended.pop("minLength", 0), mended.pop("maxLength", "")
        mended["pattern"] = rf"^[\s\S]{{{least},{most}}}$"
    return mended


def _value(key: str, value: Any) -> Any:
    if key in DATA:
        return value
    if key in BY_NAME and isinstance(value, dict):
        return {name: with_patterns(one) for name, one in value.items()}
    return with_patterns(value)


def _has_pattern(schema: dict[str, Any]) -> bool:
    # xgrammar refuses a pattern or format together with a length, and says so.
    return "pattern" in schema or "format" in schema


def with_little_whitespace(tag: Any) -> Any:
    """A structural tag whose JSON has at most one blank at a place.

    The engine's `disable_any_whitespace` does not reach the schemas in it, and a small model can fill any length with
    blanks.
    """
    if isinstance(tag, list):
        return [with_little_whitespace(one) for one in tag]
    if not isinstance(tag, dict):
        return tag
    if tag.get("type") == "json_schema" and "json_schema" in tag and tag.get("style", "json") == "json":
        return {**tag, "max_whitespace_cnt": tag.get("max_whitespace_cnt") or 1}
    return {key: with_little_whitespace(value) for key, value in tag.items()}

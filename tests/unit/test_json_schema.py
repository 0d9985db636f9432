from __future__ import annotations

from typing import Any

import pytest

from workers.engines.json_schema import with_little_whitespace, with_patterns

BOUNDED = {"type": "string", "maxLength": 4}
PATTERN = {"type": "string", "pattern": r"^[\s\S]{0,4}$"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (BOUNDED, PATTERN),
        ({"type": "string", "minLength": 2}, {"type": "string", "pattern": r"^[\s\S]{2,}$"}),
        ({"type": ["null", "string"], "maxLength": 4}, {"type": ["null", "string"], "pattern": r"^[\s\S]{0,4}$"}),
        ({"properties": {"default": BOUNDED}}, {"properties": {"default": PATTERN}}),
        ({"anyOf": [BOUNDED, {"items": BOUNDED}]}, {"anyOf": [PATTERN, {"items": PATTERN}]}),
        ({"$defs": {"type": BOUNDED}, "$ref": "#/$defs/type"}, {"$defs": {"type": PATTERN}, "$ref": "#/$defs/type"}),
        ({"enum": [BOUNDED]}, {"enum": [BOUNDED]}),
        ({"properties": {"maxLength": {"type": "string"}}}, {"properties": {"maxLength": {"type": "string"}}}),
        ({**BOUNDED, "format": "uuid"}, {**BOUNDED, "format": "uuid"}),
        ({"type": "array", "maxItems": 3}, {"type": "array", "maxItems": 3}),
    ],
)
def test_a_bounded_string_is_one_of_a_pattern_and_nothing_else_changes(given: Any, expected: Any) -> None:
    before = repr(given)
    assert with_patterns(given) == expected
    assert repr(given) == before


def test_only_the_json_of_a_structural_tag_is_bounded_in_its_whitespace() -> None:
    json_part = {
        "type": "json_schema",
        "max_whitespace_cnt": None,
        "json_schema": {"type": "object", "properties": {"type": {"const": "x"}}},
    }
    xml_part = {**json_part, "style": "qwen_xml"}
    tag = {"type": "structural_tag", "format": {"type": "or", "elements": [json_part, xml_part]}}
    made = with_little_whitespace(tag)
    assert made["format"]["elements"] == [{**json_part, "max_whitespace_cnt": 1}, xml_part]
    assert with_little_whitespace(made) == made

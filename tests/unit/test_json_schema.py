from __future__ import annotations

from typing import Any

import pytest

from workers.engines.json_schema import with_patterns

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

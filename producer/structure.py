"""What an answer may be made to match: a JSON schema, a regular expression, one of some texts, a grammar.

What can be checked without the engine is checked here. What its grammar compiler cannot do it says at once when the
job runs (`invalid_request`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from pydantic import BeforeValidator, Field, PlainValidator, ValidationInfo, field_validator

from producer.conversation import FUNCTION_NAME
from producer.strict import Strict

LARGEST_SCHEMA = 65_536  # bytes of JSON
DEEPEST_SCHEMA = 32
MOST_CHOICES = 1000
CHOICES = f"1 to {MOST_CHOICES:,} different texts of 1 to 1,024 characters"
TOOL_CHOICE = 'auto, none, required or {"type": "function", "function": {"name": …}}'


def _schema(value: Any) -> dict[str, Any]:
    """A JSON schema of bounded size that refers to nothing outside itself."""
    if not isinstance(value, dict):
        raise ValueError("it should be an object: a JSON schema")
    if len(msgspec.json.encode(value)) > LARGEST_SCHEMA:
        raise ValueError(f"allowed: at most {LARGEST_SCHEMA:,} bytes of JSON")
    _check_references(value, DEEPEST_SCHEMA)
    from jsonschema import SchemaError  # late: 80 ms that a web process without such jobs never needs
    from jsonschema.validators import validator_for

    try:
        validator_for(value).check_schema(value)
    except SchemaError as error:
        place = "".join(f"[{part!r}]" for part in error.absolute_path)
        raise ValueError(f"it is not a JSON schema: {place} {error.message[:200]}") from None
    return value


def _check_references(value: Any, levels: int) -> None:
    if levels == 0 and isinstance(value, dict | list):
        raise ValueError(f"allowed: at most {DEEPEST_SCHEMA} levels")
    if isinstance(value, list):
        for one in value:
            _check_references(one, levels - 1)
    elif isinstance(value, dict):
        target = value.get("$ref")
        if isinstance(target, str) and not target.startswith("#"):
            raise ValueError("$ref: allowed: a place in the schema itself, #/…; nothing is fetched")
        for one in value.values():
            _check_references(one, levels - 1)


def _choices(value: Any) -> list[str]:
    texts = value if isinstance(value, list) else []
    if not 1 <= len(texts) <= MOST_CHOICES or not all(isinstance(one, str) and 1 <= len(one) <= 1024 for one in texts):
        raise ValueError(f"allowed: {CHOICES}")
    if len(set(texts)) < len(texts):
        raise ValueError(f"allowed: {CHOICES}")
    return texts


Schema = Annotated[dict[str, Any], BeforeValidator(_schema)]
Choices = Annotated[list[str], PlainValidator(_choices, json_schema_input_type=list[str])]


class NamedSchema(Strict):
    """A JSON schema under a name, as OpenAI has it."""

    name: str = Field(pattern=FUNCTION_NAME)
    description: str | None = Field(None, max_length=1024)
    json_schema: Schema = Field(
        alias="schema",
        description=f"Of at most {LARGEST_SCHEMA:,} bytes and {DEEPEST_SCHEMA} levels; $ref only within it.",
    )
    strict: bool | None = Field(None, description="Taken for OpenAI's sake: a schema is always kept.")


class ResponseFormat(Strict):
    """What the answer is: text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = Field(None, validate_default=True)

    @field_validator("json_schema")
    @classmethod
    def _with_its_type(cls, value: NamedSchema | None, info: ValidationInfo) -> NamedSchema | None:
        kind = info.data.get("type")
        if value is None and kind == "json_schema":
            raise ValueError("it is required with the type json_schema")
        if value is not None and kind in ("text", "json_object"):
            raise ValueError("only with the type json_schema")
        return value


class Function(Strict):
    """A function that the model may call."""

    name: str = Field(pattern=FUNCTION_NAME)
    description: str | None = Field(None, max_length=4096)
    parameters: Schema | None = Field(None, description="A JSON schema of its arguments.")
    strict: bool | None = None


class Tool(Strict):
    """A tool, as OpenAI has it."""

    type: Literal["function"]
    function: Function


def _tool_choice(value: Any) -> Any:
    if value in ("auto", "none", "required"):
        return value
    if not isinstance(value, dict) or value.keys() != {"type", "function"} or value["type"] != "function":
        raise ValueError(f"allowed: {TOOL_CHOICE}")
    function = value["function"]
    if not isinstance(function, dict) or function.keys() != {"name"} or not isinstance(function["name"], str):
        raise ValueError(f"allowed: {TOOL_CHOICE}")
    return value


ToolChoice = Annotated[Any, PlainValidator(_tool_choice, json_schema_input_type=str | dict[str, Any])]

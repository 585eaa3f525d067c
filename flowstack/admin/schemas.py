"""What values from outside are to be: JSON Schema, as far as the API uses it, and a check of values by it.

The same tables are published (``openapi.json``) and enforced.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flowstack.admin.refusals import BadParameter
from flowstack.redact import shown

Schema = Mapping[str, Any]

_KINDS: dict[str, type | tuple[type, ...]] = {
    "string": str, "integer": int, "number": (int, float), "boolean": bool, "array": list, "object": dict,
    "null": type(None),
}  # fmt: skip

MOST = 2**53
"""Above this a number is not the same in every language."""


def text(most: int = 1024, **more: Any) -> Schema:
    """A string of at least one character."""
    return {"type": "string", "minLength": 1, "maxLength": most, **more}


def whole(least: int, most: int, **more: Any) -> Schema:
    """A whole number."""
    return {"type": "integer", "minimum": least, "maximum": most, **more}


def number(**more: Any) -> Schema:
    """A number from 0 up."""
    return {"type": "number", "minimum": 0, "maximum": MOST, **more}


def one_of(*words: str, **more: Any) -> Schema:
    """One of some words."""
    return {"type": "string", "enum": list(words), **more}


def nullable(schema: Schema) -> Schema:
    """The same, or null."""
    kinds = schema["type"]
    found = {**schema, "type": [*([kinds] if isinstance(kinds, str) else kinds), "null"]}
    return found | ({"enum": [*schema["enum"], None]} if "enum" in schema else {})


def listed(items: Schema) -> Schema:
    """An array."""
    return {"type": "array", "items": items}


def members(required: tuple[str, ...] = (), /, **properties: Schema) -> Schema:
    """An object with these members, and none else."""
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def answer(**properties: Schema) -> Schema:
    """An object of an answer: all of these are there, and later versions may have more."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def from_query(name: str, value: str, schema: Schema) -> Any:
    """Read a parameter of a URL.

    :raises BadParameter: it is not what the schema says.
    """
    kind = schema["type"]
    found: Any = value
    if kind == "integer" and value.isascii() and value.removeprefix("-").isdigit() and len(value) < 20:
        found = int(value)
    elif kind == "number":
        try:
            found = float(value)
        except ValueError:
            found = value
    elif kind == "boolean":
        found = {"true": True, "false": False}.get(value, value)
    check(name, found, schema)
    return found


def check(name: str, value: Any, schema: Schema) -> None:
    """See that a value is what a schema says.

    :raises BadParameter: it is not.
    """
    kinds = schema["type"]
    kinds = (kinds,) if isinstance(kinds, str) else kinds
    if not any(_is(value, kind) for kind in kinds):
        raise _bad(name, value, " or ".join(kinds))
    if "enum" in schema and value not in schema["enum"]:
        raise _bad(name, value, ", ".join(str(word) for word in schema["enum"] if word is not None))
    if isinstance(value, str):
        least, most = schema.get("minLength", 0), schema.get("maxLength", MOST)
        if not least <= len(value) <= most:
            raise BadParameter(name, f"found {len(value)} characters, expected from {least} to {most}.")
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise BadParameter(name, "found half a surrogate pair, expected UTF-8.")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        least, most = schema.get("minimum", -MOST), schema.get("maximum", MOST)
        if not least <= value <= most:
            raise _bad(name, value, f"from {least} to {most}")
    elif isinstance(value, list):
        if len(value) > schema.get("maxItems", MOST):
            raise BadParameter(name, f"found {len(value)} items, expected at most {schema['maxItems']}.")
        for index, item in enumerate(value):
            check(f"{name}[{index}]", item, schema["items"])
    elif isinstance(value, dict):
        _check_members(name, value, schema)


def _check_members(name: str, value: dict[str, Any], schema: Schema) -> None:
    known = schema["properties"]
    for member, item in value.items():
        if member not in known:
            raise _bad(f"{name} {shown(member)}", item, f"no such member, but {', '.join(known) or 'none'}")
        check(member, item, known[member])
    for member in schema["required"]:
        if member not in value:
            raise BadParameter(name, f"{member} is missing.")


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "number" and isinstance(value, float):
        return value == value and abs(value) != float("inf")
    return isinstance(value, _KINDS[kind])


def _bad(name: str, value: Any, expected: str) -> BadParameter:
    return BadParameter(name, f"found {shown(value)}, expected {expected}.")

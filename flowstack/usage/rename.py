"""Another model's name in a request's body, and nothing else of it changed."""

from __future__ import annotations

from collections.abc import Mapping

import orjson

from flowstack.usage.forms import TEXT, Fields, Wanted, boundary_of
from flowstack.usage.members import Members, Names
from flowstack.usage.request_facts import BodyKind, JsonReader, read_request_facts, reader_for

_NAMES = Names.of(("model",))
_FIELD = Wanted({"model": TEXT})


def with_model(kind: BodyKind, headers: Mapping[bytes, bytes], body: bytes, model: str) -> bytes | None:
    """The body of a request that asks for another model: its one value is replaced, every other byte stays.

    :param kind: as the operation has it.
    :param headers: the request's, by lower-case name.
    :param body: all of it.
    :return: None where that cannot be done so that every parser reads the same: the body names no model, or two, or is
        not what its Content-Type says.
    """
    asked = read_request_facts(kind, headers, body)
    if asked is None or asked.model is None or asked.fault is not None or "model" in asked.repeated:
        return None
    span = _span(kind, headers, body)
    if span is None:
        return None
    begin, end, value = span[0], span[1], model.encode("ascii") if span[2] else orjson.dumps(model)
    renamed = body[:begin] + value + body[end:]
    seen = read_request_facts(kind, headers, renamed)
    return renamed if seen is not None and seen.fault is None and seen.model == model else None


def _span(kind: BodyKind, headers: Mapping[bytes, bytes], body: bytes) -> tuple[int, int, bool] | None:
    """Where the value stands, and whether it is a form's text."""
    if isinstance(reader_for(kind, headers), JsonReader):
        members = Members(_NAMES)
        members.feed(body)
        members.finish()
        found = members.spans.get("model")
        return None if members.fault is not None or members.repeated or found is None else (found[1], found[2], False)
    boundary = boundary_of(headers.get(b"content-type", b""))
    if boundary is None:
        return None
    fields = Fields(boundary, _FIELD)
    fields.feed(body)
    fields.finish()
    place = fields.spans.get("model")
    return None if fields.fault is not None or place is None else (*place, True)

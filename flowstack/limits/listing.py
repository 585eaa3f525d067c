"""Keys and groups as programs see them, with what is used of their limits: never secrets or hashes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flowstack.config import Settings
from flowstack.keys import ATTRIBUTES, GROUP_ATTRIBUTES, Group, Key
from flowstack.limits.books import Books, Standing
from flowstack.limits.plans import group_slot
from flowstack.limits.uses import as_json

_HIDDEN = {"previous"}

Used = Callable[[Key | Group], list[Standing]] | None
"""What is used of the limits of a key, its group's too, or of a group; None where that is not known."""


def standings_of(books: Books, of: Key | Group, settings: Settings) -> list[Standing]:
    """How each limit of a key stands, or of a group; of a key its group's after its own."""
    shared = of.shared if isinstance(of, Key) else None
    return books.standings(_name(of), of, settings) + (standings_of(books, shared, settings) if shared else [])


def budgets_of(books: Books, of: Key | Group, settings: Settings) -> list[Standing]:
    """How each budget of its own stands."""
    return [each for each in books.standings(_name(of), of, settings) if each.limit == "budget"]


def _name(of: Key | Group) -> str:
    return group_slot(of.name) if isinstance(of, Group) else of.id


def state(key: Key, now: float) -> str:
    """Whether a key may be used, in a word."""
    if key.disabled:
        return "disabled"
    return "expired" if key.expires_at is not None and now >= key.expires_at else "ok"


def words_of(of: Key | Group) -> dict[str, str]:
    """Each attribute that it has, as it stands in the file, without quotes."""
    known = ATTRIBUTES if isinstance(of, Key) else GROUP_ATTRIBUTES
    values = {name: getattr(of, attribute.field) for name, attribute in known.items() if name not in _HIDDEN}
    return {name: ATTRIBUTES[name].write(value) for name, value in values.items() if value is not None and value != ()}


def key_as_json(key: Key, now: float, used: Used) -> dict[str, Any]:
    """A key with its attributes, and what is used of the limits that stand for it.

    :param now: UTC Unix seconds.
    """
    limits = _limits_as_json(key, now, used)
    return {"id": key.id, "state": state(key, now), **attributes_as_json(key), "limits": limits}


def group_as_json(group: Group, keys: int, now: float, used: Used) -> dict[str, Any]:
    """The same of a group.

    :param keys: how many are in it.
    """
    limits = _limits_as_json(group, now, used)
    return {"name": group.name, "keys": keys, **attributes_as_json(group), "limits": limits}


def _limits_as_json(of: Key | Group, now: float, used: Used) -> list[dict[str, Any]] | None:
    return [as_json(standing, now) for standing in used(of)] if used else None


def attributes_as_json(of: Key | Group) -> dict[str, Any]:
    """Each attribute, null where it has none."""
    words = words_of(of)
    result: dict[str, Any] = {}
    for name, attribute in (ATTRIBUTES if isinstance(of, Key) else GROUP_ATTRIBUTES).items():
        if name in _HIDDEN:
            continue
        value = getattr(of, attribute.field)
        if isinstance(value, tuple):
            result[name] = [str(item) for item in value]
        elif value is None or isinstance(value, int):
            result[name] = value
        else:
            result[name] = words[name]
    return result

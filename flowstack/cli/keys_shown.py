"""How keys and groups are shown to people and to programs: never secrets or hashes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence

import click

from flowstack.cli.columns import show_columns
from flowstack.config import Limits, Settings
from flowstack.keys import ATTRIBUTES, Group, Key, KeySet, hide_keys
from flowstack.limits.books import bounds_by_scope
from flowstack.limits.listing import Used, group_as_json, key_as_json, state, words_of
from flowstack.limits.uses import in_short, in_words, name_of
from flowstack.redact import visible

UNLIMITED = {
    "expires": "never",
    "models": "all",
    "endpoints": "all",
    "upstreams": "all",
    "rpm": "no limit",
    "tpm": "no limit",
    "max_parallel": "no limit",
    "budget": "no limit",
    "group": "none",
    "allow_ip": "all",
}
"""What the absence of an attribute means to a person."""

_HEAD = ("id", "state", "owner", "expires", "limits", "used", "note")
_GROUP_HEAD = ("name", "keys", "limits", "used", "note")
def show_key(key: Key, settings: Settings, now: float, as_json: bool, used: Used = None) -> None:
    """Print one key, an attribute a line, and what is used of each limit that stands for it.

    :param settings: whose limits stand where the key has none of its own.
    """
    if as_json:
        click.echo(json.dumps(key_as_json(key, now, used), indent=2))
        return
    click.echo(f"{key.id} is {'valid' if state(key, now) == 'ok' else state(key, now)}")
    standings = used(key) if used else []
    words = UNLIMITED | _limits_of_all(settings) | words_of(key)
    for name in (name for name in ATTRIBUTES if name in words):
        click.echo(f"  {name:<14} {visible(words[name])}")
    if standings:
        click.echo("used of what stands for it")
        width = max(14, *(len(name_of(standing)) for standing in standings))
        for standing in standings:
            click.echo(f"  {visible(name_of(standing)):<{width}} {in_words(standing)}")


def _limits_of_all(settings: Settings) -> dict[str, str]:
    """What stands where a key has no such limit of its own."""
    found: dict[str, list[str]] = {}
    for limit, bound in bounds_by_scope(Limits(), settings):
        value = ATTRIBUTES[limit].write(bound.value)
        found.setdefault(limit, []).append(f"{value} to {bound.scope}" if bound.scope else f"{value} as for all keys")
    return {limit: f"none of its own: {', '.join(values)}" for limit, values in found.items()}


def show_groups(keys: KeySet, used: Used = None) -> None:
    """Print groups in columns, with how many keys are in each, and what is used where that is known."""
    rows = []
    for group in keys.groups.values():
        words = words_of(group)
        note = words.pop("note", "")
        limits = " ".join(f"{name}={value}" for name, value in words.items())
        rows.append((group.name, str(keys.members.get(group.name, 0)), limits, _used_of(group, used), note))
    _show_where_used(_GROUP_HEAD, rows)


def show_groups_as_json(keys: KeySet, now: float, used: Used = None) -> None:
    """Print groups as a JSON array."""
    shown = [group_as_json(group, keys.members.get(group.name, 0), now, used) for group in keys.groups.values()]
    click.echo(json.dumps(shown, indent=2))


def show_list(keys: Iterable[Key], now: float, used: Used = None) -> None:
    """Print keys in columns; one of them says what is used, where that is known of any."""
    _show_where_used(_HEAD, [_row(key, now, used) for key in keys])


def _show_where_used(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    shown = [number for number, name in enumerate(head) if name != "used" or any(row[number] for row in rows)]
    show_columns([head[number] for number in shown], [[visible(row[number]) for number in shown] for row in rows])


def show_list_as_json(keys: Iterable[Key], now: float, used: Used = None) -> None:
    """Print keys as a JSON array, one after the other, so that many take no more memory than few."""
    click.echo("[", nl=False)
    joint = "\n"
    for piece in _pieces(keys, now, used):
        click.echo(joint + piece, nl=False)
        joint = ",\n"
    click.echo("]" if joint == "\n" else "\n]")


def _pieces(keys: Iterable[Key], now: float, used: Used) -> Iterator[str]:
    for key in keys:
        yield "  " + json.dumps(key_as_json(key, now, used))


def _row(key: Key, now: float, used: Used) -> tuple[str, ...]:
    words = words_of(key)
    owner, expires, note = (words.pop(name, "") for name in ("owner", "expires", "note"))
    limits = " ".join(f"{name}={value}" for name, value in words.items())
    return key.id, state(key, now), owner, expires, limits, _used_of(key, used), note


def _used_of(of: Key | Group, used: Used) -> str:
    return "; ".join(map(in_short, used(of))) if used else ""


def shown(words: object) -> str:
    """What is said of a file, its name included: that may be a key, given in the wrong place."""
    return visible(hide_keys(str(words)), keep="\n")

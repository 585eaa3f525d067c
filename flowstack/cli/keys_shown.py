"""How keys and groups are shown to people and to programs: never secrets or hashes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import click
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flowstack.policy.keys import ATTRIBUTES, GROUP_ATTRIBUTES, Group, Key, KeySet, hide_keys

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

MOST_DRAWN = 1000
"""Keys that a table with lines is drawn around; more are shown in plain columns, as the table takes long for them."""

_HEAD = ("id", "state", "owner", "expires", "limits", "note")
_GROUP_HEAD = ("name", "keys", "limits", "note")
_HIDDEN = {"previous"}


def state(key: Key, now: float) -> str:
    """Whether a key may be used, in a word."""
    if key.disabled:
        return "disabled"
    return "expired" if key.expires_at is not None and now >= key.expires_at else "ok"


def show_key(key: Key, now: float, as_json: bool) -> None:
    """Print one key, an attribute a line."""
    if as_json:
        click.echo(json.dumps(_as_json(key, now), indent=2))
        return
    click.echo(f"{key.id} is {'valid' if state(key, now) == 'ok' else state(key, now)}")
    words = UNLIMITED | _words(key)
    for name in (name for name in ATTRIBUTES if name in words):
        click.echo(f"  {name:<14} {visible(words[name])}")


def show_list(keys: Iterable[Key], now: float) -> None:
    """Print keys in columns."""
    _show_columns(_HEAD, [_row(key, now) for key in keys])


def show_groups(keys: KeySet) -> None:
    """Print groups in columns, with how many keys are in each."""
    rows = []
    for group in keys.groups.values():
        words = _words(group)
        note = words.pop("note", "")
        limits = " ".join(f"{name}={value}" for name, value in words.items())
        rows.append((group.name, str(keys.members.get(group.name, 0)), limits, note))
    _show_columns(_GROUP_HEAD, rows)


def show_groups_as_json(keys: KeySet) -> None:
    """Print groups as a JSON array."""
    shown = [
        {"name": group.name, "keys": keys.members.get(group.name, 0), **_attributes_as_json(group)}
        for group in keys.groups.values()
    ]
    click.echo(json.dumps(shown, indent=2))


def _show_columns(head: tuple[str, ...], cells: Iterable[Sequence[str]]) -> None:
    rows = [tuple(map(visible, row)) for row in cells]
    if sys.stdout.isatty() and len(rows) <= MOST_DRAWN:
        table = Table(*head)
        table.columns[0].no_wrap = True
        for row in rows:
            table.add_row(*map(Text, row))
        Console().print(table)
        return
    widths = [max(map(cell_len, column)) for column in zip(head, *rows, strict=True)]
    lines = []
    for row in (head, *rows):
        padded = (cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join(padded).rstrip())
    click.echo("\n".join(lines))


def show_list_as_json(keys: Iterable[Key], now: float) -> None:
    """Print keys as a JSON array, one after the other, so that many take no more memory than few."""
    click.echo("[", nl=False)
    joint = "\n"
    for piece in _pieces(keys, now):
        click.echo(joint + piece, nl=False)
        joint = ",\n"
    click.echo("]" if joint == "\n" else "\n]")


def _pieces(keys: Iterable[Key], now: float) -> Iterator[str]:
    for key in keys:
        yield "  " + json.dumps(_as_json(key, now))


def _words(of: Key | Group) -> dict[str, str]:
    """Each attribute that it has, as it stands in the file, without quotes."""
    known = ATTRIBUTES if isinstance(of, Key) else GROUP_ATTRIBUTES
    values = {name: getattr(of, attribute.field) for name, attribute in known.items() if name not in _HIDDEN}
    return {name: ATTRIBUTES[name].write(value) for name, value in values.items() if value is not None and value != ()}


def _row(key: Key, now: float) -> tuple[str, ...]:
    words = _words(key)
    owner, expires, note = (words.pop(name, "") for name in ("owner", "expires", "note"))
    limits = " ".join(f"{name}={value}" for name, value in words.items())
    return key.id, state(key, now), owner, expires, limits, note


def _as_json(key: Key, now: float) -> dict[str, Any]:
    return {"id": key.id, "state": state(key, now), **_attributes_as_json(key)}


def _attributes_as_json(of: Key | Group) -> dict[str, Any]:
    words = _words(of)
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


def shown(words: object) -> str:
    """What is said of a file, its name included: that may be a key, given in the wrong place."""
    return visible(hide_keys(str(words)), keep="\n")


def visible(text: str, keep: str = "") -> str:
    """Escape what would move the cursor, change colours or hide: names are other people's text."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)

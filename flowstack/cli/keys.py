"""``flowstack keys``: make, list, verify and remove Flowstack keys.

A secret goes to standard output once, when it is made, and comes in by standard input only: an argument would stay in
the shell's history and be seen by whoever lists processes.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import click
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flowstack.config import ConfigError, load
from flowstack.errors import FlowstackError
from flowstack.keystore.editor import add_key, remove_key
from flowstack.keystore.file import KeystoreError, read_keys
from flowstack.policy.keys import (
    ATTRIBUTES,
    Key,
    check_usable,
    checksum_ok,
    digest,
    hide_keys,
    make_token,
    parse_flowstack_auth,
    unknown_key,
)

RELOAD = "A running service takes this over on SIGHUP: systemctl reload flowstack"
ADVICE = (
    "A key is never an argument, as it would stay in the shell's history: take it out there. `flowstack keys verify` "
    "reads a key from standard input."
)
UNLIMITED = {
    "expires": "never",
    "models": "all",
    "endpoints": "all",
    "upstreams": "all",
    "rpm": "no limit",
    "tpm": "no limit",
    "max_parallel": "no limit",
    "budget": "no limit",
    "allow_ip": "all",
}
"""What the absence of an attribute means to a person."""

_SECRET = re.compile(r"fsk-[0-9A-Za-z]{12,}")


class _Command(click.Command):
    """A command whose usage errors do not repeat a key that was given as an argument."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse as click does.

        :raises click.UsageError: as click does, keys in it shortened.
        """
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            told = error.format_message()
            message = hide_keys(told)
            if message == told:
                raise
            raise click.UsageError(f"{message} {ADVICE}", ctx) from None


def _takes_keystore(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say which keystore file is meant, and pass on the path."""

    @click.option("--keys", type=click.Path(path_type=Path), metavar="FILE", help="The keystore file.  [default: keys]")
    @click.option(
        "--config", type=click.Path(path_type=Path), metavar="FILE", help="Take the keystore's path from [server] here."
    )
    @wraps(function)
    def command(keys: Path | None, config: Path | None, **options: Any) -> None:
        if any(checksum_ok(part) for given in (keys, config) if given for part in given.parts):
            raise click.UsageError(f"found a key, expected a file's path. {ADVICE}")
        with _told():
            path = keys or (load(config).server.keys if config else Path("keys"))
            function(path, **options)

    return command


def _takes_attributes(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for each attribute of a key."""
    for attribute in reversed(ATTRIBUTES.values()):
        option = click.option(
            f"--{attribute.name.replace('_', '-')}",
            attribute.field,
            metavar="TEXT" if attribute.name in {"owner", "note"} else attribute.example,
            help=attribute.help,
            callback=_read_attribute(attribute.read),
        )
        function = option(function)
    return function


def _read_attribute(read: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    def callback(context: click.Context, option: click.Parameter, text: str | None) -> Any:
        try:
            value = None if text is None else read(text)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None
        if option.name == "expires_at" and value is not None and value <= time.time():
            raise click.BadParameter("found a time that has passed, expected one to come")
        return value

    return callback


@contextmanager
def _told() -> Iterator[None]:
    """Turn what a person can put right into a line on standard error and exit status 1."""
    try:
        yield
    except (KeystoreError, ConfigError) as error:
        raise click.ClickException(_shown(error)) from None


@click.group()
def keys() -> None:
    """Make, list, verify and remove Flowstack keys.

    The keystore is a text file with a line for each key. It holds the keys' hashes: the keys themselves are shown once,
    when they are made. A running service takes changes over on SIGHUP (systemctl reload flowstack).

    \b
    Example:
      flowstack keys add --keys keys --owner alice@example.com --expires 2027-06-30
      flowstack keys list --keys keys
    """
    for stream in (sys.stdout, sys.stderr):
        # A name that the terminal's character set lacks is shown escaped.
        getattr(stream, "reconfigure", lambda **_: None)(errors="backslashreplace")


@keys.command(cls=_Command)
@_takes_keystore
@_takes_attributes
def add(path: Path, **fields: Any) -> None:
    """Make a key, and print it once.

    The key is the only line on standard output; it cannot be shown again, as the file holds its hash only. The file is
    made if it is missing. What is left out is not restricted.

    Of the restrictions this version enforces --expires only. The others are checked for their form, and kept in the
    file for later.

    \b
    Example: a key for a person, and one for a program, held in a variable.
      flowstack keys add --owner alice@example.com --expires 2027-06-30
      KEY=$(flowstack keys add --owner "Batch jobs" --max-parallel 20)
    """
    key_id, token = make_token(os.urandom)
    given = {name: value for name, value in fields.items() if value is not None}
    key = Key(key_id, digest(token.encode()), **given)
    add_key(path, key)
    try:
        sys.stdout.write(f"{token}\n")
        sys.stdout.flush()
    except OSError as error:
        remove_key(path, key_id)
        raise click.ClickException(f"could not show the new key ({error.strerror}), so it was removed again") from None
    click.echo(f"Added the key {key_id} to {_shown(path)}. Keep the line above: it is not shown again.", err=True)
    click.echo(RELOAD, err=True)


@keys.command("list", cls=_Command)
@_takes_keystore
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array, for programs.")
def list_(path: Path, as_json: bool) -> None:
    """List the keys and what they may do; never their secrets or hashes.

    \b
    Example: all keys; the ids of the expired ones.
      flowstack keys list
      flowstack keys list --json | jq -r '.[] | select(.state == "expired") | .id'
    """
    found = _read(path)
    now = time.time()
    if as_json:
        click.echo(json.dumps([_as_json(key, now) for key in found], indent=2))
        return
    head = ("id", "state", "owner", "expires", "limits", "note")
    rows = [tuple(_visible(cell) for cell in _row(key, now)) for key in found]
    if sys.stdout.isatty():
        table = Table(*head)
        table.columns[0].no_wrap = True
        for row in rows:
            table.add_row(*map(Text, row))
        Console().print(table)
        return
    widths = [max(map(cell_len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        cells = (cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


@keys.command(cls=_Command, short_help="Say whether a key, read from standard input, is valid.")
@_takes_keystore
def verify(path: Path) -> None:
    """Read a key from standard input, and say whether it is valid and what it may do.

    Looks in the file, not in a running service. Exit status 1 if the key is not valid. A key is never given as an
    argument, where it would stay in the shell's history; at a terminal you are asked for it.

    \b
    Example: type it in, or take it from a file.
      flowstack keys verify
      flowstack keys verify --config /etc/flowstack/flowstack.toml < key.txt
    """
    found = {key.digest: key for key in _read(path)}
    text = _secret_from_input()
    try:
        token = parse_flowstack_auth([b"Bearer " + text])
        key = found.get(digest(token))
        if key is None:
            raise unknown_key(token)
        check_usable(key, time.time())
    except FlowstackError as error:
        raise click.ClickException(
            f"not valid in {_shown(path)}. A client that sends this is answered {error.status} {error.code}: "
            f"{error.message}"
        ) from None
    words = UNLIMITED | _words(key)
    click.echo(f"{key.id} is valid")
    for name in (name for name in ATTRIBUTES if name in words):
        click.echo(f"  {name:<13} {_visible(words[name])}")


@keys.command(cls=_Command, short_help="Remove the key with this id.")
@_takes_keystore
@click.argument("key_id", metavar="ID")
def remove(path: Path, key_id: str) -> None:
    """Remove the key with this id: its next request is refused, once the service has reloaded.

    Comments and the order of the other lines stay.

    \b
    Example:
      flowstack keys remove k7Qm2xW9pLz4 && systemctl reload flowstack
    """
    if _SECRET.search(key_id):
        own = f": here {key_id[4:16]}" if checksum_ok(key_id) else ""
        raise click.UsageError(
            "found a whole key, expected its id, which is the 12 characters after fsk-"
            f"{own}. The key is in your shell's history now: take it out there, too."
        )
    key = remove_key(path, key_id)
    owner = f" of {_visible(key.owner)}" if key.owner else ""
    click.echo(f"Removed the key {key.id}{owner} from {_shown(path)}.\n{RELOAD}", err=True)


def _read(path: Path) -> tuple[Key, ...]:
    reading = read_keys(path)
    for warning in reading.warnings:
        click.echo(f"Warning: {_shown(warning)}", err=True)
    if reading.faults:
        raise KeystoreError(reading.faults)
    return reading.keys


def _secret_from_input() -> bytes:
    if sys.stdin.isatty():
        text = os.fsencode(str(click.prompt("Key", hide_input=True, err=True)))
    else:
        text = sys.stdin.buffer.readline(4096)
    if not text.strip():
        raise click.ClickException("found nothing on standard input, expected a key, such as by `… verify < key.txt`")
    return text.strip()


def _state(key: Key, now: float) -> str:
    if key.disabled:
        return "disabled"
    return "expired" if key.expires_at is not None and now >= key.expires_at else "ok"


def _words(key: Key) -> dict[str, str]:
    """Each attribute that the key has, as it stands in the file, without quotes."""
    values = {name: getattr(key, attribute.field) for name, attribute in ATTRIBUTES.items()}
    return {name: ATTRIBUTES[name].write(value) for name, value in values.items() if value is not None and value != ()}


def _row(key: Key, now: float) -> tuple[str, ...]:
    words = _words(key)
    owner, expires, note = (words.pop(name, "") for name in ("owner", "expires", "note"))
    limits = " ".join(f"{name}={value}" for name, value in words.items())
    return key.id, _state(key, now), owner, expires, limits, note


def _as_json(key: Key, now: float) -> dict[str, Any]:
    words = _words(key)
    result: dict[str, Any] = {"id": key.id, "state": _state(key, now)}
    for name, attribute in ATTRIBUTES.items():
        value = getattr(key, attribute.field)
        if isinstance(value, tuple):
            result[name] = [str(item) for item in value]
        elif value is None or isinstance(value, int):
            result[name] = value
        else:
            result[name] = words[name]
    return result


def _shown(words: object) -> str:
    """What is said of a file, its name included: that may be a key, given in the wrong place."""
    return _visible(hide_keys(str(words)), keep="\n")


def _visible(text: str, keep: str = "") -> str:
    """Escape what would move the cursor, change colours or hide: names are other people's text."""
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)

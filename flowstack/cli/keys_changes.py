"""The commands of ``flowstack keys`` that change what is there, and the one that brings in many."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO

import click
from attrs import evolve

from flowstack.cli.arguments import Command
from flowstack.cli.keys_options import (
    Duration,
    Where,
    changes_of,
    takes_attributes,
    takes_id,
    writes_keystore,
)
from flowstack.cli.keys_shown import shown
from flowstack.cli.standings import warn_of_limits
from flowstack.keys import ATTRIBUTES, KeySet, digest, expires_text, make_token
from flowstack.keys.editor import add_keys, change_key, remove_key, rotate_key
from flowstack.keys.keyfile import MAX_BYTES
from flowstack.keys.lists import parse_list, repeats
from flowstack.keys.reading import KeystoreError
from flowstack.redact import visible


@click.command("set", cls=Command)
@writes_keystore
@takes_id
@click.option(
    "--unset",
    type=click.Choice([name.replace("_", "-") for name in ATTRIBUTES if name != "previous_until"]),
    multiple=True,
    help="An attribute to remove; can be given several times. previous ends the grace period of a rotation.",
)
@takes_attributes
def set_(path: Path, key_id: str, unset: tuple[str, ...], fields: dict[str, Any]) -> None:
    """Change what the key with this id may do; what is not named stays.

    Its secret, a comment on its line, and all other lines stay as they are.

    \b
    Example: another limit, and no limit of models.
      flowstack keys set k7Qm2xW9pLz4 --rpm 1200 --unset models --reload --config /etc/flowstack/flowstack.toml
    """
    changes = changes_of(unset, fields)
    if "previous" in unset:
        changes["previous_until"] = None
    before, after = change_key(path, key_id, lambda key: evolve(key, **changes))
    click.echo(f"Changed the key {key_id} in {shown(path)}.", err=True)
    warn_of_limits(Where.of_command(), after, before)


@click.command(cls=Command)
@writes_keystore
@takes_id
@click.option("--grace", type=Duration(), default="24h", show_default=True, help="How long the old secret stays valid.")
def rotate(path: Path, key_id: str, grace: int) -> None:
    """Give the key with this id a new secret, and print it once; the old one stays valid for a grace period.

    Id, attributes, limits and what was used of them stay. Rotations cannot overlap; --grace 0 ends every old secret at
    once, as after a leak.

    \b
    Example: a day to move the clients over; at once.
      flowstack keys rotate k7Qm2xW9pLz4
      flowstack keys rotate k7Qm2xW9pLz4 --grace 0 --reload --config /etc/flowstack/flowstack.toml
    """
    _, token = make_token(os.urandom, key_id)
    old, new = rotate_key(path, key_id, digest(token.encode()), grace, time.time())
    try:
        sys.stdout.write(f"{token}\n")
        sys.stdout.flush()
    except OSError as error:
        change_key(path, key_id, lambda _: old)
        reason = f"could not show the new key ({error.strerror}), so the old one was put back"
        raise click.ClickException(reason) from None
    click.echo(f"Rotated the key {key_id} in {shown(path)}. Keep the line above: it is not shown again.", err=True)
    until = new.previous_until
    ends = "is no longer valid" if until is None else f"is valid through {expires_text(until)}"
    click.echo(f"The old secret {ends}.", err=True)


@click.command(cls=Command, short_help="Disable the key with this id.")
@writes_keystore
@takes_id
def disable(path: Path, key_id: str) -> None:
    """Disable the key with this id: its next request is refused, once the service has reloaded. Its line stays.

    \b
    Example:
      flowstack keys disable k7Qm2xW9pLz4 --reload --config /etc/flowstack/flowstack.toml
    """
    change_key(path, key_id, lambda key: evolve(key, disabled=True))
    click.echo(f"Disabled the key {key_id} in {shown(path)}.", err=True)


@click.command(cls=Command, short_help="Enable the key with this id again.")
@writes_keystore
@takes_id
def enable(path: Path, key_id: str) -> None:
    """Enable the key with this id again; one that has expired needs a new date, by set --expires.

    \b
    Example:
      flowstack keys enable k7Qm2xW9pLz4
    """
    change_key(path, key_id, lambda key: evolve(key, disabled=False))
    click.echo(f"Enabled the key {key_id} in {shown(path)}.", err=True)


@click.command(cls=Command, short_help="Remove the key with this id.")
@writes_keystore
@takes_id
def remove(path: Path, key_id: str) -> None:
    """Remove the key with this id: its next request is refused, once the service has reloaded.

    Comments and the order of the other lines stay.

    \b
    Example:
      flowstack keys remove k7Qm2xW9pLz4 && systemctl reload flowstack
    """
    key = remove_key(path, key_id)
    owner = f" of {visible(key.owner)}" if key.owner else ""
    click.echo(f"Removed the key {key.id}{owner} from {shown(path)}.", err=True)


@click.command("import", cls=Command, short_help="Add many keys at once, from a file or standard input.")
@writes_keystore
@click.argument("source", type=click.File("rb"), default="-", metavar="[FILE]")
@takes_attributes
def import_(path: Path, source: BinaryIO, fields: dict[str, Any]) -> None:
    """Add many keys in one write, from a file or standard input: all of them, or none.

    A line is one of the keystore's own, with id, hash and attributes, or a whole key, which is hashed here and gets the
    attributes that are given as options. The id of a key that was not made by Flowstack is the first 12 digits of its
    hash. Blank lines and comments are passed over. Every bad line is named, by its number; no line is repeated.

    \b
    Example: lines of another keystore; the keys of a program, and what they may do.
      flowstack keys import other-keys
      generate-keys | flowstack keys import --owner "Batch jobs" --max-parallel 20
    """
    given = getattr(source, "name", "<stdin>")
    name = "standard input" if given == "<stdin>" else shown(given)
    text = source.read(MAX_BYTES + 1)
    if len(text) > MAX_BYTES:
        raise click.ClickException(f"found more than {MAX_BYTES} bytes in {name}, expected keys, one a line")
    found, faults = parse_list(text, name, fields)
    if faults:
        raise KeystoreError(tuple(faults))
    if not found:
        raise click.ClickException(f"found no keys in {name}, expected one a line; nothing was written")

    def check(old: KeySet) -> None:
        if there := repeats(found, old, name, shown(path)):
            raise KeystoreError(tuple(there))

    add_keys(path, [key for _, key in found], check)
    click.echo(f"Added {len(found)} keys to {shown(path)}.", err=True)

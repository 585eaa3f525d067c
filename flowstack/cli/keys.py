"""``flowstack keys``: make, list, change, verify and remove Flowstack keys.

A secret goes to standard output once, when it is made, and comes in by standard input only.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import click

from flowstack.cli.arguments import Command
from flowstack.cli.keys_changes import disable, enable, import_, remove, rotate, set_
from flowstack.cli.keys_options import Where, read_or_tell, reads_keystore, takes_attributes, takes_id, writes_keystore
from flowstack.cli.keys_shown import show_key, show_list, show_list_as_json, shown
from flowstack.cli.standings import used_by, warn_of_limits
from flowstack.errors import FlowstackError
from flowstack.keys import (
    Key,
    check_usable,
    digest,
    make_token,
    parse_flowstack_auth,
    unknown_key,
)
from flowstack.keys.editor import add_key, key_of, remove_key


@click.group()
def keys() -> None:
    """Make, list, change, verify and remove Flowstack keys.

    The keystore is a text file with a line for each key. It holds the keys' hashes: the keys themselves are shown once,
    when they are made. A running service reloads it on SIGHUP (systemctl reload flowstack, or --reload).

    \b
    Example:
      flowstack keys add --keys keys --owner alice@example.com --expires 2027-06-30
      flowstack keys list --keys keys
    """


@keys.command(cls=Command)
@writes_keystore
@takes_attributes
def add(path: Path, fields: dict[str, Any]) -> None:
    """Make a key, and print it once.

    The key is the only line on standard output; it cannot be shown again, as the file holds its hash only. The file is
    made if it is missing. What is left out is not restricted.

    \b
    Example: a key for a person, and one for a program, held in a variable.
      flowstack keys add --owner alice@example.com --expires 2027-06-30
      KEY=$(flowstack keys add --owner "Batch jobs" --max-parallel 20)
    """
    key_id, token = make_token(os.urandom)
    key = Key(key_id, digest(token.encode()), **fields)
    add_key(path, key)
    try:
        sys.stdout.write(f"{token}\n")
        sys.stdout.flush()
    except OSError as error:
        remove_key(path, key_id)
        raise click.ClickException(f"could not show the new key ({error.strerror}), so it was removed again") from None
    click.echo(f"Added the key {key_id} to {shown(path)}. Keep the line above: it is not shown again.", err=True)
    warn_of_limits(Where.of_command(), key)


@keys.command("list", cls=Command)
@reads_keystore
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array, for programs.")
def list_(path: Path, as_json: bool) -> None:
    """List the keys and what they may do; never their secrets or hashes.

    \b
    Example: all keys; the ids of the expired ones.
      flowstack keys list
      flowstack keys list --json | jq -r '.[] | select(.state == "expired") | .id'
    """
    where = Where.of_command()
    found = read_or_tell(path)
    with used_by(where, found) as used:
        (show_list_as_json if as_json else show_list)(found, time.time(), used)


@keys.command(cls=Command)
@reads_keystore
@takes_id
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object, for programs.")
def show(path: Path, key_id: str, as_json: bool) -> None:
    """Show what the key with this id may do; never its secret or hash.

    \b
    Example:
      flowstack keys show k7Qm2xW9pLz4
    """
    key = key_of(path, read_or_tell(path), key_id)
    where = Where.of_command()
    with used_by(where, [key]) as used:
        show_key(key, where.settings, time.time(), as_json, used)


@keys.command(cls=Command, short_help="Say whether a key, read from standard input, is valid.")
@reads_keystore
def verify(path: Path) -> None:
    """Read a key from standard input, and say whether it is valid and what it may do.

    Looks in the file, not in a running service. Exit status 1 if the key is not valid. A key is never given as an
    argument, where it would stay in the shell's history; at a terminal you are asked for it.

    \b
    Example: type it in, or take it from a file.
      flowstack keys verify
      flowstack keys verify --config /etc/flowstack/flowstack.toml < key.txt
    """
    found = read_or_tell(path)
    text = _secret_from_input()
    now = time.time()
    try:
        token = parse_flowstack_auth([b"Bearer " + text])
        key = found.get(digest(token))
        if key is None:
            raise unknown_key(token)
        check_usable(key, now)
    except FlowstackError as error:
        raise click.ClickException(
            f"not valid in {shown(path)}. A client that sends this is answered {error.status} {error.code}: "
            f"{error.message}"
        ) from None
    where = Where.of_command()
    show_key(key, where.settings, now, as_json=False)
    if key.superseded:
        click.echo("This secret was replaced by a rotation, and is valid until then: move to the new one.", err=True)


for command in (set_, rotate, disable, enable, remove, import_):
    keys.add_command(command)


def _secret_from_input() -> bytes:
    if sys.stdin.isatty():
        text = os.fsencode(str(click.prompt("Key", hide_input=True, err=True)))
    else:
        text = sys.stdin.buffer.readline(4096)
    if not text.strip():
        raise click.ClickException("found nothing on standard input, expected a key, such as by `… verify < key.txt`")
    return text.strip()

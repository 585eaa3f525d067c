"""``flowstack groups``: add, list, change and remove groups, whose limits several keys share."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click
from attrs import evolve

from flowstack.cli.arguments import Command
from flowstack.cli.keys_options import (
    Where,
    changes_of,
    read_or_tell,
    reads_keystore,
    takes_group,
    takes_limits,
    writes_keystore,
)
from flowstack.cli.keys_shown import show_groups, show_groups_as_json, shown
from flowstack.cli.standings import used_by, warn_of_limits
from flowstack.keys import GROUP_ATTRIBUTES, Group
from flowstack.keys.editor import add_group, change_group, remove_group


@click.group()
def groups() -> None:
    """Add, list, change and remove groups of keys.

    A group is a line of the keystore that begins with @ and its name. Its limits are shared by all keys that name it: a
    request must fit its key's own limits, and its group's.

    \b
    Example: 500 USD a month for all keys of a team together.
      flowstack groups add search --budget 500usd/month --rpm 6000
      flowstack keys add --owner alice@example.com --group search
    """


@groups.command(cls=Command, short_help="Add a group.")
@writes_keystore
@takes_group
@takes_limits
def add(path: Path, name: str, fields: dict[str, Any]) -> None:
    """Add a group with this name. The file is made if it is missing; what is left out is not limited.

    \b
    Example:
      flowstack groups add search --budget 500usd/month --rpm 6000
    """
    group = Group(name, **fields)
    add_group(path, group)
    click.echo(f"Added the group {name} to {shown(path)}. A key joins it by `keys set ID --group {name}`.", err=True)
    warn_of_limits(Where.of_command(), group)


@groups.command("list", cls=Command)
@reads_keystore
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array, for programs.")
def list_(path: Path, as_json: bool) -> None:
    """List the groups, their limits, and how many keys are in each.

    \b
    Example: all groups; the names of those without keys.
      flowstack groups list
      flowstack groups list --json | jq -r '.[] | select(.keys == 0) | .name'
    """
    keys = read_or_tell(path)
    with used_by(Where.of_command(), keys.groups.values()) as used:
        if as_json:
            show_groups_as_json(keys, time.time(), used)
        else:
            show_groups(keys, used)


@groups.command("set", cls=Command)
@writes_keystore
@takes_group
@click.option(
    "--unset",
    type=click.Choice([name.replace("_", "-") for name in GROUP_ATTRIBUTES]),
    multiple=True,
    help="An attribute to remove; can be given several times.",
)
@takes_limits
def set_(path: Path, name: str, unset: tuple[str, ...], fields: dict[str, Any]) -> None:
    """Change the limits of the group with this name; what is not named stays, and so does what was used.

    \b
    Example: more money, and no limit of requests.
      flowstack groups set search --budget 800usd/month --unset rpm --reload --config /etc/flowstack/flowstack.toml
    """
    changes = changes_of(unset, fields)
    before, after = change_group(path, name, lambda group: evolve(group, **changes))
    click.echo(f"Changed the group {name} in {shown(path)}.", err=True)
    warn_of_limits(Where.of_command(), after, before)


@groups.command(cls=Command, short_help="Remove the group with this name.")
@writes_keystore
@takes_group
def remove(path: Path, name: str) -> None:
    """Remove the group with this name. One that keys are in stays: they would lose its limits.

    \b
    Example:
      flowstack keys set k7Qm2xW9pLz4 --unset group
      flowstack groups remove search
    """
    remove_group(path, name)
    click.echo(f"Removed the group {name} from {shown(path)}.", err=True)

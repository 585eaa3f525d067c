"""What stands on a command's line: a key never does, as it would stay in the shell's history and in lists of processes.

A whole key is refused wherever it stands, in an option's value too, also with a provider's key behind it (``<key>~…``).
What merely looks like one is shortened where a mistake is told.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

import click

from flowstack.keys.misplaced import holds_whole_key
from flowstack.tokens import hide_keys

ADVICE = (
    "A key is never an argument, as it would stay in the shell's history: take it out there. `flowstack keys verify` "
    "reads a key from standard input."
)
_ID = re.compile(r"fsk-([0-9A-Za-z]{12})(?![0-9A-Za-z])").fullmatch
_BEGINNING = re.compile(r"fsk-([0-9A-Za-z]{12})")
_ONE_STRING = re.compile(r"fsk-[0-9A-Za-z]{12,}~").search


class Command(click.Command):
    """A command that takes no key as an argument, and repeats none in a usage error."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse as click does.

        :raises click.UsageError: as click does, keys in it shortened; or a key is among the arguments.
        """
        refuse_keys(args)
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            told = error.format_message()
            message = hide_keys(told)
            if message == told:
                raise
            raise click.UsageError(f"{message} {ADVICE}", ctx) from None


def refuse_keys(arguments: Iterable[str]) -> None:
    """Refuse a command line in which a whole key stands, and say what its id is.

    :raises click.UsageError: it holds one, which is not repeated.
    """
    for argument in arguments:
        if _ONE_STRING(argument) or holds_whole_key(os.fsencode(argument)):
            raise _whole_key(argument)


def read_id(text: str, hint: str) -> str:
    """Take a key's id, and nothing that begins as a key does, whole or not.

    :param hint: how the argument is called.
    :raises click.UsageError: it is more than an id, and not repeated.
    """
    if bare := _ID(text):
        raise click.BadParameter(f"found fsk- before the id, expected the id alone: {bare[1]}", param_hint=hint)
    if "fsk-" in text:
        raise _whole_key(text)
    return text


def no_key(text: str) -> str:
    """Take anything but what looks like a key, ours or a provider's.

    :raises click.UsageError: it does, and is not repeated.
    """
    if hide_keys(text) != text:
        raise _whole_key(text)
    return text


def _whole_key(text: str) -> click.UsageError:
    beginning = _BEGINNING.search(text)
    own = f": here {beginning[1]}" if beginning else ""
    return click.UsageError(
        f"found a whole key; where a key's id is expected, that is the 12 characters after fsk-{own}. {ADVICE}"
    )

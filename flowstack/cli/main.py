"""``flowstack``: the operator's commands, one module each, which is imported when the command is called."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any

import click

from flowstack import __version__
from flowstack.build import BUILD
from flowstack.cli.arguments import refuse_keys
from flowstack.redact import visible
from flowstack.tokens import hide_keys

COMMANDS = {
    "budgets": "flowstack.cli.budgets:budgets",
    "check": "flowstack.cli.check:check",
    "groups": "flowstack.cli.groups:groups",
    "keys": "flowstack.cli.keys:keys",
    "reconcile": "flowstack.cli.reconcile:reconcile",
    "stand-in": "flowstack.cli.standin:stand_in",
    "usage": "flowstack.cli.usage:usage",
}
"""Where each command is."""


@contextmanager
def _without_keys() -> Iterator[None]:
    try:
        yield
    except click.UsageError as error:
        raise click.UsageError(hide_keys(error.format_message()), error.ctx) from None


@contextmanager
def _told_in_words() -> Iterator[None]:
    """Say what a file, or the disk behind the output, is missing; click itself ends where nobody reads (EPIPE)."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        if error.filename is None:  # what waits in the output's buffer would fail once more, at the end
            with suppress(OSError), open(os.devnull, "wb") as nothing:
                os.dup2(nothing.fileno(), 1)
        name = "the output" if error.filename is None else visible(hide_keys(os.fsdecode(error.filename)))
        raise click.ClickException(f"{name}: {error.strerror or error}") from None


class _Root(click.Group):
    """Imports a command when it is called, and keeps a key that was given as an argument, by mistake, out of what is
    printed about the mistake."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name every command, without importing any."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        command = getattr(import_module(module), name)
        assert isinstance(command, click.Command)
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse what is before the command's name.

        :raises click.UsageError: as click does, keys in it shortened; or a key stands anywhere in the command.
        """
        refuse_keys(args)
        with _without_keys():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command.

        :raises click.UsageError: as click does, keys in it shortened.
        :raises click.ClickException: there is no output, or something could not be opened, read or written.
        """
        if sys.stdout is None:  # closed by who called: a new key would be shown to nobody
            raise click.ClickException("standard output is closed, expected somewhere to write to, such as a file")
        for stream in (sys.stdout, sys.stderr):
            # A name that the terminal's character set lacks, or that is no text at all, is shown escaped.
            getattr(stream, "reconfigure", lambda **_: None)(errors="backslashreplace")
        with _without_keys(), _told_in_words():
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result


@click.group(cls=_Root, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="flowstack", message=f"%(prog)s, version %(version)s ({BUILD} build)")
def main() -> None:
    """Operate Flowstack, the proxy in front of the OpenAI API.

    The proxy itself is started with `twistd flowstack`.

    \b
    Example: make a key, check the configuration, start.
      flowstack keys add --keys keys --owner alice@example.com
      flowstack check --config flowstack.toml
      twistd -n flowstack --config flowstack.toml
    """

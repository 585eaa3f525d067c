"""``flowstack``: the operator's commands, one module each."""

from __future__ import annotations

from typing import Any

import click

from flowstack import __version__
from flowstack.cli.check import check
from flowstack.cli.keys import keys
from flowstack.cli.standin import stand_in
from flowstack.policy.keys import hide_keys


class _Root(click.Group):
    """Keeps a key that was given as an argument, by mistake, out of what is printed about the mistake."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command.

        :raises click.UsageError: as click does, keys in it shortened.
        """
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            raise click.UsageError(hide_keys(error.format_message()), error.ctx) from None


@click.group(cls=_Root, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="flowstack")
def main() -> None:
    """Operate Flowstack, the proxy in front of the OpenAI API.

    The proxy itself is started with `twistd flowstack`.

    \b
    Example: make a key, check the configuration, start.
      flowstack keys add --keys keys --owner alice@example.com
      flowstack check --config flowstack.toml
      twistd -n flowstack --config flowstack.toml
    """


main.add_command(check)
main.add_command(keys)
main.add_command(stand_in)

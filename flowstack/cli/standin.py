"""``flowstack stand-in``: the command of :mod:`flowstack.testing.command`, where what it needs is installed."""

from __future__ import annotations

import click

__all__ = ["stand_in"]


def _missing(module: str) -> click.Command:
    """Make the command that says what to install."""

    @click.command(
        "stand-in",
        short_help="Run a stand-in for the OpenAI API (needs the extra flowstack[standin]).",
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )
    def stand_in() -> None:
        """Run a stand-in for the OpenAI API. It needs the extra: pip install 'flowstack[standin]'"""
        raise click.ClickException(
            f"the stand-in needs the module {module}, which is not installed; run: pip install 'flowstack[standin]'"
        )

    return stand_in


try:
    from flowstack.testing.command import stand_in
except ModuleNotFoundError as error:
    module = (error.name or "").partition(".")[0]
    if module not in ("h11", "multipart", "wsproto"):
        raise
    stand_in = _missing(module)

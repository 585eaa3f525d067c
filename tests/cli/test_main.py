"""The command as a whole: what holds for every command in it."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from flowstack.cli.main import main

SECRETS = [f"fsk-{'0aB' * 18}", "sk-proj-0123456789abcdef"]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize(
    "before",
    [[], ["check"], ["keys"], ["keys", "add"], ["keys", "list"], ["keys", "remove", "nobody"], ["stand-in"]],
)
def test_a_key_as_an_argument_too_many_is_refused_as_misuse_and_not_repeated(before: list[str], secret: str) -> None:
    for argument in (secret, f"--{secret}", f"--{secret}=x"):
        result = CliRunner().invoke(main, [*before, argument], catch_exceptions=False)
        assert result.exit_code == 2
        assert "sk-..." in result.output
        assert secret not in result.output


def test_help_names_every_command() -> None:
    result = CliRunner().invoke(main, ["--help"], catch_exceptions=False)
    assert result.exit_code == 0
    for command in main.commands:
        assert f"\n  {command} " in result.stdout

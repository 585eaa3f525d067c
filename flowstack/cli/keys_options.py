"""What the commands of ``flowstack keys`` and ``flowstack groups`` take: the file, an id or a name, attributes, and
whether the service is to reload.

A secret is never taken as an argument: it would stay in the shell's history and be seen by whoever lists processes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import click
from attrs import frozen

from flowstack.cli.arguments import read_id
from flowstack.cli.keys_shown import shown
from flowstack.config import ConfigError, Settings, load
from flowstack.errors import ParseError
from flowstack.keys import ATTRIBUTES, GROUP_ATTRIBUTES, Attribute, KeySet, read_group_name
from flowstack.keys.asking import AskingError, Service, ask_reload, find_service
from flowstack.keys.reading import KeystoreError, read_keys
from flowstack.limits.counters import CountersError
from flowstack.notation import DURATION, read_duration

RELOAD = "A running service reloads it on SIGHUP: systemctl reload flowstack, or --reload here."


_KEYS = click.option(
    "--keys", type=click.Path(path_type=Path), metavar="FILE", help="The keystore file.  [default: keys]"
)
_CONFIG = click.option(
    "--config", type=click.Path(path_type=Path), metavar="FILE", help="Read the keystore path from this configuration."
)


@frozen
class Where:
    """What a command's options say of where things are.

    :ivar keys: the keystore file.
    :ivar state: the service's state directory, where one is known.
    :ivar settings: of ``--config``; the defaults without it.
    :ivar configured: whether there is one.
    """

    keys: Path
    state: Path | None
    settings: Settings
    configured: bool

    @classmethod
    def of_command(cls) -> Where:
        """Of the command that runs now, which was given :func:`reads_keystore` or :func:`writes_keystore`."""
        found = click.get_current_context().find_object(cls)
        assert found is not None
        return found


def reads_keystore(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say which keystore file is meant, and whose state, and pass on the path."""

    @_KEYS
    @_CONFIG
    @_state("to show what is used of limits")
    @wraps(function)
    def command(keys: Path | None, config: Path | None, state: Path | None, **options: Any) -> None:
        with told():
            function(_find(keys, config, state).keys, **options)

    return command


def writes_keystore(function: Callable[..., None]) -> Callable[..., None]:
    """As :func:`reads_keystore`, and with ``--reload``: the service then reloads what the function wrote."""

    @_KEYS
    @_CONFIG
    @click.option("--reload", is_flag=True, help="Have the running service reload it; exit status 1 if it does not.")
    @_state("for --reload")
    @click.option(
        "--wait", type=click.FloatRange(0.1, 3600), default=30.0, show_default=True, help="Seconds, for --reload."
    )
    @wraps(function)
    def command(
        keys: Path | None, config: Path | None, reload: bool, state: Path | None, wait: float, **options: Any
    ) -> None:
        with told():
            where = _find(keys, config, state)
            if reload and where.state is None:
                raise click.UsageError(
                    "--reload finds the service by its state directory: add --state DIR, or --config FILE with "
                    "[server] state"
                )
            # Before anything is written, so that a wrong path leaves nothing half done.
            service = find_service(where.state) if reload and where.state is not None else None
            function(where.keys, **options)
            if service is None:
                click.echo(RELOAD, err=True)
            else:
                _have_reloaded(service, wait)

    return command


def _state(purpose: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option(
        "--state",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help=f"The service's state directory, {purpose}.  [default: from --config]",
    )


def _find(keys: Path | None, config: Path | None, state: Path | None) -> Where:
    settings = Settings() if config is None else load(config)
    server = settings.server
    where = Where(keys or server.keys, state or server.state, settings, config is not None)
    click.get_current_context().obj = where
    return where


def read_or_tell(path: Path) -> KeySet:
    """Read the keystore; warnings go to standard error.

    :raises KeystoreError: it has faults.
    """
    reading = read_keys(path)
    for warning in reading.warnings:
        click.echo(f"Warning: {shown(warning)}", err=True)
    if reading.faults:
        raise KeystoreError(reading.faults)
    return reading.key_set


def _have_reloaded(service: Service, seconds: float) -> None:
    answer = ask_reload(service, seconds)
    if answer.faults:
        lines = "\n".join(answer.faults)
        raise AskingError(
            f"written, but the service, process {answer.pid}, did not load it; its {answer.keys} keys of before "
            f"stay in force:\n{lines}"
        )
    click.echo(
        f"The service, process {answer.pid}, has loaded it: {answer.keys} keys, generation {answer.generation}.",
        err=True,
    )


@contextmanager
def told() -> Iterator[None]:
    """Turn what a person can put right into a line on standard error and exit status 1."""
    try:
        yield
    except (KeystoreError, ConfigError, AskingError, CountersError) as error:
        raise click.ClickException(shown(error)) from None


def _read_id(context: click.Context, argument: click.Parameter, text: str) -> str:
    return read_id(text, "ID")


takes_id = click.argument("key_id", metavar="ID", callback=_read_id)
"""Give a command the argument that says which key is meant."""


def _read_name(context: click.Context, argument: click.Parameter, text: str) -> str:
    try:
        return read_group_name(read_id(text, "NAME"))
    except ParseError as error:
        raise click.BadParameter(str(error)) from None


takes_group = click.argument("name", metavar="NAME", callback=_read_name)
"""Give a command the argument that says which group is meant."""


def takes_attributes(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for each attribute of a key, and pass those on that were given, as ``fields``."""
    return _takes([attribute for attribute in ATTRIBUTES.values() if not attribute.by_rotation], function)


def takes_limits(function: Callable[..., None]) -> Callable[..., None]:
    """As :func:`takes_attributes`, for a group."""
    return _takes(list(GROUP_ATTRIBUTES.values()), function)


def _takes(attributes: list[Attribute], function: Callable[..., None]) -> Callable[..., None]:
    @wraps(function)
    def command(*arguments: Any, **options: Any) -> None:
        fields = {attribute.field: options.pop(attribute.field) for attribute in attributes}
        function(*arguments, fields={name: value for name, value in fields.items() if value is not None}, **options)

    made: Callable[..., None] = command
    for attribute in reversed(attributes):
        made = _option(attribute)(made)
    return made


def changes_of(unset: tuple[str, ...], fields: dict[str, Any]) -> dict[str, Any]:
    """What ``set`` is to change, by field.

    :param unset: names of attributes to take out, as on the command line.
    :raises click.UsageError: nothing, or one of them both ways.
    """
    names = [name.replace("-", "_") for name in unset]
    both = [name for name in names if ATTRIBUTES[name].field in fields]
    if both:
        raise click.UsageError(f"found {both[0]} both set and unset, expected one of the two")
    if not fields and not names:
        raise click.UsageError("found nothing to change, expected an attribute such as --rpm 600, or --unset NAME")
    return fields | {ATTRIBUTES[name].field: _UNSET[name] for name in names}


_UNSET = {name: () if name in {"models", "endpoints", "upstreams", "allow_ip"} else None for name in ATTRIBUTES}


def _option(attribute: Attribute) -> Callable[[Callable[..., None]], Callable[..., None]]:
    name = attribute.name.replace("_", "-")
    if attribute.name == "inject_usage":
        return click.option(
            f"--{name}/--no-{name}",
            attribute.field,
            default=None,
            help="Whether Flowstack asks for the usage of streams.",
        )
    return click.option(
        f"--{name}",
        attribute.field,
        metavar="TEXT" if attribute.name in {"owner", "note"} else attribute.example,
        help=attribute.help,
        callback=_read_attribute(attribute.read),
    )


def _read_attribute(read: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    def callback(context: click.Context, option: click.Parameter, text: str | None) -> Any:
        try:
            value = None if text is None else read(text)
        except ParseError as error:
            raise click.BadParameter(str(error)) from None
        if option.name == "expires_at" and value is not None and value <= time.time():
            raise click.BadParameter("found a time that has passed, expected one to come")
        return value

    return callback


class Duration(click.ParamType[int]):
    """A whole number of seconds, minutes, hours or days, such as ``24h``; ``0`` alone is none."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Give it in seconds."""
        seconds = read_duration(str(value))
        if seconds is None:
            self.fail(f"expected {DURATION}", param, ctx)
        return seconds

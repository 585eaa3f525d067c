"""``flowstack check``: what a start would find wrong, without a start."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from flowstack.config import ConfigError, Settings, load
from flowstack.config.endpoints import address
from flowstack.keystore.file import read_keys
from flowstack.policy.keys import Key, hide_keys


@click.command()
@click.option("--config", type=click.Path(path_type=Path), metavar="FILE", help="The configuration.  [default: none]")
@click.option(
    "--keys", type=click.Path(path_type=Path), metavar="FILE", help="The keystore, in place of the configuration's."
)
@click.pass_context
def check(context: click.Context, config: Path | None, keys: Path | None) -> None:
    """Check the configuration and the keystore without starting.

    Faults go to standard error, one line each and all at once, and the exit status is then 1. A warning is no fault.
    Nothing is bound, written or connected to. Run it as the service's user to see what the service may read.

    \b
    Example:
      flowstack check --config /etc/flowstack/flowstack.toml
      sudo -u flowstack flowstack check --config /etc/flowstack/flowstack.toml
    """
    faults: list[str] = []
    settings = None
    try:
        settings = load(config, {"keys": keys})
    except ConfigError as error:
        faults += map(str, error.faults)
    keystore = settings.server.keys if settings else keys
    if keystore is not None:
        reading = read_keys(keystore)
        faults += map(str, reading.faults)
        _tell((f"warning: {warning}" for warning in reading.warnings), err=True)
    if settings is None or faults:
        _tell(faults, err=True)
        context.exit(1)
    _tell((f"warning: {doubt}" for doubt in _doubts(settings, reading.keys)), err=True)
    _tell([f"{config or 'built-in defaults'}: ok", *_summary(settings, reading.keys, time.time())])


def _tell(lines: Iterable[str], err: bool = False) -> None:
    """Print lines; a key that was given where a file's name belongs is not repeated."""
    for line in lines:
        click.echo(hide_keys(line), err=err)


def _summary(settings: Settings, keys: tuple[Key, ...], now: float) -> Iterator[str]:
    """What a start would serve: listeners, upstreams with the hosts that select them, usable keys."""
    server = settings.server
    yield f"  listen    {', '.join(server.listen)}"
    yield f"  admin     {server.admin or 'none'}"
    for upstream in settings.upstreams:
        selected_by = ", ".join([*upstream.hosts, *(["every other host"] if upstream.default else [])])
        yield f"  upstream  {upstream.name}: {upstream.base_url}, selected by {selected_by or 'nothing'}"
    unusable = sum(key.disabled or (key.expires_at is not None and now >= key.expires_at) for key in keys)
    unusable_too = f", {unusable} of them disabled or expired" if unusable else ""
    yield f"  keys      {len(keys)} in {server.keys}{unusable_too}"


def _doubts(settings: Settings, keys: tuple[Key, ...]) -> Iterator[str]:
    """What can be started but is hardly meant."""
    admin = settings.server.admin
    where = admin and address(admin)
    if where and where.is_any:
        yield (
            f"[server] admin: {admin} is open to every network of this machine, and asks for no password; "
            "add interface=127.0.0.1"
        )
    for upstream in settings.upstreams:
        if not upstream.hosts and not upstream.default:
            yield f"[upstreams.{upstream.name}] hosts: none, and it is not the default, so that nothing selects it"
    names = {upstream.name for upstream in settings.upstreams}
    for key in keys:
        for name in key.upstreams:
            if name not in names:
                yield f"{settings.server.keys}: the key {key.id} names the upstream {name}, which is not configured"

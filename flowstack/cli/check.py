"""``flowstack check``: what a start would find wrong, without a start."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from os import environ
from pathlib import Path
from urllib.parse import urlsplit

import click
from attrs import fields

from flowstack.config import ConfigError, Settings, UpstreamLimits, load
from flowstack.config.endpoints import address
from flowstack.keystore.reading import read_keys
from flowstack.ledger.prices import load_prices
from flowstack.policy.keys import Key, hide_keys
from flowstack.policy.operations import operation_of
from flowstack.policy.pricing import Prices

_PROVIDERS = {
    "api.openai.com": "/v1",
    "openai.azure.com": "/openai/v1",
    "api.anthropic.com": "/v1",
    "api.mistral.ai": "/v1",
    "api.groq.com": "/openai/v1",
    "openrouter.ai": "/api/v1",
}
"""Where the API of some well-known hosts, and of those below them, begins."""

_PROXIES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")
_PRIVATE_SUFFIXES = (".internal", ".local", ".lan", ".home.arpa", ".localhost", ".svc")


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
        settings = load(config, {"keys": keys}, starting=True)
    except ConfigError as error:
        faults += map(str, error.faults)
        keystore = error.keys
    else:
        keystore = settings.server.keys
    if keystore is not None:
        reading = read_keys(keystore, time.time())
        faults += map(str, reading.faults)
        _tell((f"warning: {warning}" for warning in reading.warnings), err=True)
    if settings is None or faults:
        _tell(faults, err=True)
        context.exit(1)
    held, prices = reading.keys, load_prices(settings.prices)
    _tell((f"warning: {doubt}" for doubt in _doubts(settings, held, prices)), err=True)
    _tell([f"{config or 'built-in defaults'}: ok", *_summary(settings, held, prices, time.time())])


def _tell(lines: Iterable[str], err: bool = False) -> None:
    """Print lines; a key that was given where a file's name belongs is not repeated."""
    for line in lines:
        click.echo(hide_keys(line), err=err)


def _summary(settings: Settings, keys: tuple[Key, ...], prices: Prices, now: float) -> Iterator[str]:
    """What a start would serve: listeners, upstreams with the hosts that select them, usable keys, and what limits."""
    server = settings.server
    token = ", with a bearer token" if server.admin and settings.admin.token_file else ""
    yield f"  listen    {', '.join(server.listen)}"
    yield f"  admin     {server.admin or 'none'}{token}"
    for upstream in settings.upstreams:
        selected_by = ", ".join([*upstream.hosts, *(["every other host"] if upstream.default else [])])
        own_key = f", with the key in {upstream.api_key_file}" if upstream.api_key_file else ""
        yield f"  upstream  {upstream.name}: {upstream.base_url}, selected by {selected_by or 'nothing'}{own_key}"
    unusable = sum(key.disabled or (key.expires_at is not None and now >= key.expires_at) for key in keys)
    unusable_too = f", {unusable} of them disabled or expired" if unusable else ""
    yield f"  keys      {len(keys)} in {server.keys}{unusable_too}"
    made = "" if server.state is None or server.state.is_dir() else ", which the start makes, with mode 0700"
    yield f"  ledger    {f'below {server.state}{made}' if server.state else 'none, as [server] state is not set'}"
    for where, limits in _limits(settings):
        names = [limit.name for limit in fields(UpstreamLimits) if getattr(limits, limit.name) is not None]
        if told := ", ".join(f"{name} {getattr(limits, name)}" for name in names):
            yield f"  limits    {told}, for each key{where}"
    own = f", {len(settings.prices)} of your own" if settings.prices else ""
    yield f"  prices    the table of {prices.date}{own}"


def _limits(settings: Settings) -> Iterator[tuple[str, UpstreamLimits]]:
    yield "", settings.limits
    for upstream in settings.upstreams:
        yield f" at {upstream.name}", upstream.limits


def _doubts(settings: Settings, keys: tuple[Key, ...], prices: Prices) -> Iterator[str]:
    """What can be started but is hardly meant."""
    server, token_file = settings.server, settings.admin.token_file
    where = server.admin and address(server.admin)
    if where and where.is_any and token_file is None:
        yield (
            f"[server] admin: {server.admin} is open to every network of this machine, and asks for no password; "
            "add interface=127.0.0.1, or set [admin] token_file"
        )
    if token_file is not None and not server.admin:
        yield "[admin] token_file: set, but [server] admin is not, so that nothing asks for the token"
    if server.proxy_protocol and not server.trusted_proxies:
        yield "[server] trusted_proxies: none, so that proxy_protocol lets nobody in but by a UNIX socket"
    if Path(settings.log.requests).is_fifo():
        yield f"[log] requests: {settings.log.requests} is a FIFO: there is no start unless somebody reads it"
    yield from _doubts_of_upstreams(settings, keys)
    yield from _doubts_of_urls(settings)
    if server.state is None and settings.ledger.on_ledger_failure == "refuse":
        yield "[ledger] on_ledger_failure: refuse, but [server] state is not set, so that there is no ledger"
    if server.state is None and (
        any(limits.budget for _, limits in _limits(settings)) or any(key.budget for key in keys)
    ):
        yield "[server] state: not set, so that a restart forgets what was spent of budgets"
    yield from _doubts_of_budgets(settings, keys, prices)


def _doubts_of_upstreams(settings: Settings, keys: tuple[Key, ...]) -> Iterator[str]:
    for upstream in settings.upstreams:
        label, url = f"[upstreams.{upstream.name}]", urlsplit(upstream.base_url)
        if not upstream.hosts and not upstream.default:
            yield f"{label} hosts: none, and it is not the default, so that nothing selects it"
        if upstream.api_key_file and url.scheme == "http" and not _is_here(url.hostname or ""):
            yield f"{label} base_url: http, so that the key in {upstream.api_key_file} crosses the network unencrypted"
    names = {upstream.name for upstream in settings.upstreams}
    for key in keys:
        for name in key.upstreams:
            if name not in names:
                yield f"{settings.server.keys}: the key {key.id} names the upstream {name}, which is not configured"


def _doubts_of_urls(settings: Settings) -> Iterator[str]:
    """Base URLs that are probably not what was meant, with what to write instead."""
    for upstream in settings.upstreams:
        label, url = f"[upstreams.{upstream.name}] base_url", urlsplit(upstream.base_url)
        host = url.hostname or ""
        if url.scheme == "http" and not upstream.api_key_file and not _is_private(host):
            yield (
                f"{label}: http, so that clients' provider keys and prompts cross the network unencrypted; write "
                f"https{upstream.base_url.removeprefix('http')} if it speaks TLS"
            )
        base = _before_endpoint(url.path)
        if base is not None:
            yield (
                f"{label}: {upstream.base_url} ends in an endpoint, which stands before every path that clients ask "
                f"for; write {url.scheme}://{url.netloc}{base}"
            )
        elif not url.path and any(prefix.base_path is None for prefix in settings.server.prefixes):
            for suffix, path in _PROVIDERS.items():
                if host == suffix or host.endswith(f".{suffix}"):
                    yield (
                        f"{label}: {upstream.base_url} has no path, and this provider's API is below {path}; write "
                        f"{upstream.base_url}{path}"
                    )
    for name in _PROXIES:
        if environ.get(name):
            yield f"{name}: set in the environment, and not used: Flowstack connects to its upstreams directly"


def _before_endpoint(path: str) -> str | None:
    """What of a base URL's path stands before an endpoint in it, or None where there is none."""
    segments = path.strip("/").split("/")
    for number, segment in enumerate(segments):
        rest = "/".join(segments[number:]).encode()
        if segment not in ("v1", "openai") and (rest == b"models" or operation_of(b"POST", rest).inference):
            return "/".join(["", *segments[:number]])
    return None


def _doubts_of_budgets(settings: Settings, keys: tuple[Key, ...], prices: Prices) -> Iterator[str]:
    """A key with a budget is refused a model that nobody can price."""
    if settings.estimates.price is not None:
        return
    everywhere = all(limits.budget for _, limits in [*_limits(settings)][1:]) or settings.limits.budget
    for key in keys:
        for model in key.models if key.budget or everywhere else ():
            if "*" not in model and not prices.has_price(model):
                yield (
                    f"{settings.server.keys}: the key {key.id} names the model {model}, which has no price, so that "
                    "its budget refuses it; add it to [prices], or set [estimates] price"
                )


def _is_here(host: str) -> bool:
    """Whether a host is this machine."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_private(host: str) -> bool:
    """Whether a host is this machine or one of a network of the operator's own."""
    try:
        return ip_address(host).is_private
    except ValueError:
        return "." not in host or host.endswith(_PRIVATE_SUFFIXES)

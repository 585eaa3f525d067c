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

from flowstack.cli.arguments import Command
from flowstack.cli.explain import explained
from flowstack.config import ConfigError, Settings, Upstream, UpstreamLimits, load
from flowstack.config.endpoints import address
from flowstack.config.ways import Way, way_of
from flowstack.files import as_owner
from flowstack.keys import Key, KeySet, hide_keys
from flowstack.keys.reading import read_keys
from flowstack.ledger.database import Unavailable
from flowstack.ledger.shared import ledger_there
from flowstack.limits.counters import CountersError
from flowstack.limits.doubts import doubts_of_key, doubts_of_tokens
from flowstack.limits.listing import budgets_of
from flowstack.limits.probe import Found, probe
from flowstack.limits.remote_books import books_of
from flowstack.prices.cost import Prices
from flowstack.prices.dollars import money_of
from flowstack.prices.table import load_prices
from flowstack.usage.operations import operation_of

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


@click.command(cls=Command)
@click.option("--config", type=click.Path(path_type=Path), metavar="FILE", help="The configuration.  [default: none]")
@click.option(
    "--keys", type=click.Path(path_type=Path), metavar="FILE", help="The keystore, in place of the configuration's."
)
@click.option("--explain", metavar="MODEL", help="Also say where a request for this model would go.")
@click.pass_context
def check(context: click.Context, config: Path | None, keys: Path | None, explain: str | None) -> None:
    """Check the configuration and the keystore without starting.

    Faults go to standard error, one line each and all at once, and the exit status is then 1. A warning is no fault.
    Nothing is bound or written, and nothing is connected to but what [shared] names: it is asked whether it will do.
    Run it as the service's user to see what the service may read.

    \b
    Example:
      flowstack check --config /etc/flowstack/flowstack.toml
      sudo -u flowstack flowstack check --config /etc/flowstack/flowstack.toml
      flowstack check --config /etc/flowstack/flowstack.toml --explain gpt-4o
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
    found = ledger = None
    try:
        if settings.shared.redis is not None:
            found = probe(settings.shared)
    except CountersError as error:
        faults.append(f"[shared] redis: {str(error).rstrip('.')}")
    try:
        if settings.shared.postgres is not None:
            ledger = ledger_there(settings.shared)
    except Unavailable as error:
        faults.append(str(error))
    if faults:
        _tell(faults, err=True)
        context.exit(1)
    held, groups, prices = reading.keys, reading.key_set, load_prices(settings.prices)
    doubts = (
        *(() if found is None else (f"[shared] redis: {doubt}" for doubt in found.doubts)),
        *_doubts(settings, held),
        *_doubts_of_limits(settings, groups, prices),
        *_doubts_of_groups(settings, groups),
    )
    _tell((f"warning: {doubt}" for doubt in doubts), err=True)
    summary = _summary(settings, held, prices, time.time(), len(groups.groups), found, ledger)
    _tell([f"{config or 'built-in defaults'}: ok", *summary])
    if explain is not None:
        _tell(explained(settings, explain))


def _tell(lines: Iterable[str], err: bool = False) -> None:
    """Print lines; a key that was given where a file's name belongs is not repeated."""
    for line in lines:
        click.echo(hide_keys(line), err=err)


def _summary(
    settings: Settings,
    keys: tuple[Key, ...],
    prices: Prices,
    now: float,
    groups: int,
    redis: Found | None,
    postgres: str | None,
) -> Iterator[str]:
    """What a start would serve: listeners, upstreams with the hosts that select them, usable keys, and what limits."""
    server = settings.server
    token = ", with a bearer token" if server.admin and settings.admin.token_file else ""
    yield f"  listen    {', '.join(server.listen)}"
    yield f"  admin     {server.admin or 'none'}{token}"
    fallbacks = {one.fallback.to: one.name for one in settings.upstreams if one.fallback is not None}
    for upstream in settings.upstreams:
        models = [f"the models {', '.join(upstream.models)}"] if upstream.models else []
        others = ["every other host"] if upstream.default else []
        behind = [f"what {fallbacks[upstream.name]} cannot serve"] if upstream.name in fallbacks else []
        selected_by = ", ".join([*upstream.hosts, *models, *others, *behind])
        for (name, base_url, key_file), target in zip(_places(upstream), upstream.targets or (None,), strict=True):
            own_key = f", with the key in {key_file}" if key_file else ""
            way = "".join(f", {words}" for words in _way(way_of(upstream, target)))
            yield f"  upstream  {name}: {base_url}{way}, selected by {selected_by or 'nothing'}{own_key}"
    unusable = sum(key.disabled or (key.expires_at is not None and now >= key.expires_at) for key in keys)
    unusable_too = f", {unusable} of them disabled or expired" if unusable else ""
    shared = f", and {groups} {'group' if groups == 1 else 'groups'}" if groups else ""
    yield f"  keys      {len(keys)} in {server.keys}{unusable_too}{shared}"
    made = "" if server.state is None or server.state.is_dir() else ", which the start makes, with mode 0700"
    yield f"  ledger    {f'below {server.state}{made}' if server.state else 'none, as [server] state is not set'}"
    for where, limits in _limits(settings):
        names = [limit.name for limit in fields(UpstreamLimits) if getattr(limits, limit.name) is not None]
        if told := ", ".join(f"{name} {getattr(limits, name)}" for name in names):
            yield f"  limits    {told}, for each key{where}"
    if redis is not None:
        yield f"  redis     {redis.text}"
    if postgres is not None:
        yield f"  postgres  {postgres}"
    own = f", {len(settings.prices)} of your own" if settings.prices else ""
    yield f"  prices    the table of {prices.date}{own}"


def _way(way: Way) -> Iterator[str]:
    """By which way a place is reached, where it is not the plain one."""
    if way.socket is not None:
        yield f"by the socket {way.socket}"
    if way.proxy is not None:
        shown = "" if way.proxy_auth_file is None else f" with the credentials in {way.proxy_auth_file}"
        yield f"through the proxy {way.proxy}{shown}"
    if way.client_cert_file is not None:
        yield f"showing the certificate in {way.client_cert_file}"


def _limits(settings: Settings) -> Iterator[tuple[str, UpstreamLimits]]:
    yield "", settings.limits
    for upstream in settings.upstreams:
        yield f" at {upstream.name}", upstream.limits


def _doubts(settings: Settings, keys: tuple[Key, ...]) -> Iterator[str]:
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
    if server.state is None and (any(limits.budget for _, limits in _limits(settings)) or any(map(_has_budget, keys))):
        yield "[server] state: not set, so that a restart forgets what was spent of budgets"


def _places(upstream: Upstream) -> Iterator[tuple[str, str, Path | None]]:
    """Where an upstream is served: the name of each place, its base URL, and the file with the operator's key."""
    if not upstream.targets:
        yield upstream.name, upstream.base_url, upstream.api_key_file
    for one in upstream.targets:
        yield f"{upstream.name}.targets.{one.name}", one.base_url, one.api_key_file or upstream.api_key_file


def _doubts_of_upstreams(settings: Settings, keys: tuple[Key, ...]) -> Iterator[str]:
    fallbacks = {one.fallback.to for one in settings.upstreams if one.fallback is not None}
    for upstream in settings.upstreams:
        label = f"[upstreams.{upstream.name}]"
        if not (upstream.hosts or upstream.default or upstream.models or upstream.name in fallbacks):
            yield f"{label} hosts: none, and it is not the default, so that nothing selects it"
        named = [rule.on for rule in (upstream.retry, upstream.fallback) if rule is not None]
        if upstream.first_byte is None and any("timeout" in on for on in named):
            yield (
                f"{label} first_byte: none, so that a provider that is silent is given up after response_head "
                f"({settings.timeouts.response_head:g} seconds) only"
            )
        for name, base_url, key_file in _places(upstream):
            url = urlsplit(base_url)
            if key_file and url.scheme == "http" and not _is_here(url.hostname or ""):
                place = f"[upstreams.{name}] base_url"
                yield f"{place}: http, so that the key in {key_file} crosses the network unencrypted"
    names = {upstream.name for upstream in settings.upstreams}
    for key in keys:
        for name in key.upstreams:
            if name not in names:
                yield f"{settings.server.keys}: the key {key.id} names the upstream {name}, which is not configured"


def _doubts_of_urls(settings: Settings) -> Iterator[str]:
    """Base URLs that are probably not what was meant, with what to write instead."""
    for place, base_url, key_file in (place for upstream in settings.upstreams for place in _places(upstream)):
        label, url = f"[upstreams.{place}] base_url", urlsplit(base_url)
        host = url.hostname or ""
        if url.scheme == "http" and not key_file and not _is_private(host):
            yield (
                f"{label}: http, so that clients' provider keys and prompts cross the network unencrypted; write "
                f"https{base_url.removeprefix('http')} if it speaks TLS"
            )
        base = _before_endpoint(url.path)
        if base is not None:
            yield (
                f"{label}: {base_url} ends in an endpoint, which stands before every path that clients ask "
                f"for; write {url.scheme}://{url.netloc}{base}"
            )
        elif not url.path and any(prefix.base_path is None for prefix in settings.server.prefixes):
            for suffix, path in _PROVIDERS.items():
                if host == suffix or host.endswith(f".{suffix}"):
                    yield (
                        f"{label}: {base_url} has no path, and this provider's API is below {path}; write "
                        f"{base_url}{path}"
                    )
    for name in _PROXIES:
        if environ.get(name):
            yield f"{name}: set in the environment, and not used; set proxy in [upstreams.NAME] if it is meant"


def _before_endpoint(path: str) -> str | None:
    """What of a base URL's path stands before an endpoint in it, or None where there is none."""
    segments = path.strip("/").split("/")
    for number, segment in enumerate(segments):
        rest = "/".join(segments[number:]).encode()
        if segment not in ("v1", "openai") and (rest == b"models" or operation_of(b"POST", rest).inference):
            return "/".join(["", *segments[:number]])
    return None


def _doubts_of_limits(settings: Settings, keys: KeySet, prices: Prices) -> Iterator[str]:
    path = settings.server.keys
    yield from doubts_of_tokens("[limits]", settings.limits.tpm, settings)
    for upstream in settings.upstreams:
        yield from doubts_of_tokens(f"[upstreams.{upstream.name}] limits", upstream.limits.tpm, settings)
    for group in keys.groups.values():
        yield from doubts_of_tokens(f"{path}: the group {group.name}", group.tpm, settings)
    for key in keys:
        yield from doubts_of_key(f"{path}: the key {key.id}", key, settings, lambda: prices)
    if settings.server.state is not None:
        yield from _doubts_of_periods(settings, keys, settings.server.state)


def _doubts_of_periods(settings: Settings, keys: KeySet, state: Path) -> Iterator[str]:
    """A budget whose period was changed begins at nothing."""
    try:
        with as_owner(state), books_of(settings, state) as books:
            standings = [] if books is None else [
                (standing, books.spent_before(standing))
                for of in (*keys.groups.values(), *keys)
                for standing in budgets_of(books, of, settings)
            ]  # fmt: skip
    except (CountersError, OSError) as error:
        yield str(error).rstrip(".")
        return
    for standing, before in standings:
        if before is not None and standing.budget is not None:
            what = f"group {standing.name[1:]}" if standing.name.startswith("@") else f"key {standing.name}"
            yield (
                f"{settings.server.keys}: the {what} had a budget by {before[0]}, of which {money_of(before[1])} USD "
                f"are spent; by {standing.budget.period} it begins at zero"
            )


def _has_budget(key: Key) -> bool:
    """Whether its own line or its group's has one."""
    return key.budget is not None or (key.shared is not None and key.shared.budget is not None)


def _doubts_of_groups(settings: Settings, keys: KeySet) -> Iterator[str]:
    for group in keys.groups.values():
        if not keys.members.get(group.name):
            yield f"{settings.server.keys}: no key names the group {group.name}; add group={group.name} to a key's line"
        elif not group.limited:
            yield (
                f"{settings.server.keys}: the group {group.name} has no limit, so that it only names its keys in the "
                "ledger; add one, such as rpm=6000, if one is meant"
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

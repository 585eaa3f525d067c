"""From TOML and flags to :class:`~flowstack.config.settings.Settings`, or to every fault at once.

Which keys there are, what each takes and what it is otherwise: :mod:`flowstack.config.settings` says.
"""

from __future__ import annotations

import errno
import re
import tomllib
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from types import MappingProxyType
from typing import Any

from attrs import asdict

from flowstack.config import endpoints
from flowstack.config.faults import ConfigError, key_name, one_of
from flowstack.config.places import misplaced
from flowstack.config.settings import TABLES, Price, Server, Settings, Target, Upstream, has_key, written
from flowstack.config.values import MAX_DOLLARS, Reader, base_url, model_pattern, name, settings_of
from flowstack.config.ways import misfits
from flowstack.errors import ParseError
from flowstack.files import read_regular
from flowstack.redact import shown, unless_secret

MAX_BYTES = 16 * 1024 * 1024
"""Of a configuration."""

NONE: Mapping[str, object] = MappingProxyType({})

FLAGS = ("listen", "upstream", "keys", "state", "workers", "admin")
"""What the command line overrides: keys of ``[server]``, and ``upstream`` for the default upstream's base URL."""

_TABLES_EXPECTED = f"{', '.join(map(written, list(TABLES)[:-1]))} or {written(list(TABLES)[-1])}"
_KEY = r"""(?:[A-Za-z0-9_-]+|'[^']*'|"[^"]*")"""
_WITHIN = re.compile(rf"((?:\.{_KEY})*)\.({_KEY}(?:\[.*)?)")
"""A place within tables of a table: which table, and which key."""

_BYTE_ORDER_MARKS = {b"\xef\xbb\xbf": "UTF-8", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_POSITION = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")


def load(path: Path | None, overrides: Mapping[str, object] = NONE, *, starting: bool = False) -> Settings:
    """Read the settings; every path in them is absolute, so that a later change of directory moves none.

    :param path: the TOML file; None means the defaults.
    :param overrides: what flags said, as in :func:`parse`; relative paths are taken from the working directory.
    :param starting: whether the service is to start with them, or as if: the places that it writes to are looked at.
    :raises ConfigError: with every fault. A file that cannot be read is one.
    """
    here = Path.cwd()
    if path is None:
        return parse(b"", "", overrides, directory=here, working=here, starting=starting)
    try:
        text, _ = read_regular(path, MAX_BYTES)
        if len(text) > MAX_BYTES:
            raise OSError(errno.EFBIG, f"more than {MAX_BYTES} bytes")
    except (OSError, ValueError) as fault:
        reason = getattr(fault, "strerror", None) or "not a path"
        found = f"a file that cannot be read ({reason})"
        given = here / Path(str(overrides["keys"])) if overrides.get("keys") else None
        unread = ParseError(f"found {found}, expected a TOML file that this user can read", file=str(path))
        try:
            parse(b"", str(path), overrides, directory=here, working=here, starting=starting)
        except ConfigError as of_flags:
            raise ConfigError([unread, *of_flags.faults], given) from None
        raise ConfigError([unread], given) from None
    return parse(text, str(path), overrides, directory=path.absolute().parent, working=here, starting=starting)


def parse(
    text: bytes,
    file_name: str,
    overrides: Mapping[str, object] = NONE,
    *,
    directory: Path | None = None,
    working: Path = Path(),
    starting: bool = False,
) -> Settings:
    """Check a configuration. Reads no file but the certificates and keys that it names, and binds nothing.

    :param text: TOML 1.0 in UTF-8.
    :param file_name: what faults call it.
    :param overrides: values of flags by the names in :data:`FLAGS`, as strings, paths or numbers (``listen``: several).
        They replace what the file says, which is then not read. None, and for ``listen`` an empty sequence, means not
        given.
    :param directory: what relative paths in *text* are taken from; None means where *file_name* is.
    :param working: what relative paths in *overrides* are taken from.
    :param starting: as in :func:`load`.
    :raises ConfigError: with every fault.
    :raises TypeError: an override that is no flag.
    """
    if unknown := overrides.keys() - set(FLAGS):
        raise TypeError(f"no such override: {', '.join(sorted(unknown))}")
    flags = {key: value for key, value in overrides.items() if value not in (None, (), [])}
    reading = _Reading(file_name, Path(file_name).parent if directory is None else directory, working)
    settings = reading.settings(reading.document(text), flags)
    if starting:
        reading.look_at_places(settings, flags)
    if reading.faults:
        raise ConfigError(reading.faults, reading.keys)
    return settings


class _Reading:
    """One pass over a document, gathering faults instead of stopping at them."""

    def __init__(self, file_name: str, directory: Path, working: Path) -> None:
        self.faults: list[ParseError] = []
        self.keys: Path | None = None  # the keystore, where neither its key nor the whole file is at fault
        self._syntax = True  # whether the document could be read
        self._file_name = file_name
        self._directory = directory  # of the file, where its relative paths start
        self._working = working  # where those of flags do

    def document(self, text: bytes) -> dict[str, Any]:
        """The tables of a TOML document; none where its syntax is at fault."""
        for mark, encoding in _BYTE_ORDER_MARKS.items():
            if text.startswith(mark):
                self._fault("", "", f"a {encoding} byte order mark at its beginning", "TOML in UTF-8 without one; save "
                            "it as UTF-8 without BOM")  # fmt: skip
                self._syntax = False
                return {}
        try:
            return tomllib.loads(text.decode("utf-8"))
        except UnicodeDecodeError as fault:
            before = text[: fault.start]
            self._syntax_fault(before, f"the byte {text[fault.start]:#04x}", "TOML in UTF-8")
        except RecursionError:
            self._fault("", "", "arrays or tables nested too deeply", "the tables of Flowstack")
        except ValueError as fault:  # TOMLDecodeError, or int() refusing thousands of digits
            message = str(fault)
            position = _POSITION.search(message)
            if position is None:
                self._fault("", "", "a number that is too long", "TOML 1.0")
            else:
                reason = _POSITION.sub("", message)
                found = f"a fault of syntax ({unless_secret(reason, reason)})"
                before = text if position[1] is None else _up_to(text, int(position[1]), int(position[2]))
                self._syntax_fault(before, found, "TOML 1.0")
        self._syntax = False
        return {}

    def settings(self, document: dict[str, Any], flags: Mapping[str, object]) -> Settings:
        """Read every table; what is at fault keeps its default, and a fault is noted."""
        made: dict[str, Any] = {}
        for table, raw in (document | {table: {} for table in TABLES if table not in document}).items():
            match table:
                case "server":
                    made[table] = self._section(table, raw, but=flags)
                case "upstreams":
                    made[table] = self._upstreams(raw, flags.get("upstream"))
                case "prices":
                    made[table] = self._prices(raw)
                case _ if table in TABLES:
                    made[table] = TABLES[table](**self._section(table, raw))
                case _:
                    self._unknown_at_top(table, raw)
        for key, value in flags.items():
            if key != "upstream":
                self._flag(key, settings_of(Server)[key].reader, value, made["server"])
        named = "keys" in flags or (isinstance(document.get("server"), dict) and "keys" in document["server"])
        default = self._directory / Server().keys
        self.keys = made["server"].get("keys", None if named or not self._syntax else default)
        made["server"].setdefault("keys", default)
        checked = Settings(**(made | {"server": Server(**made["server"])}))
        self._no_clashes(checked.server, flags)
        self._can_reconcile(checked)
        self._can_manage(checked)
        self._can_share(checked)
        return checked

    def _section(self, table: str, raw: object, *, kind: str = "", but: Collection[str] = ()) -> dict[str, Any]:
        """The good values of one table.

        :param kind: whose keys it has, where that is not its own name.
        :param but: known keys to leave out: flags take their place.
        """
        if not isinstance(raw, dict):
            self._fault(table, "", shown(raw), "a table")
            return {}
        known = settings_of(TABLES[kind or table])
        good: dict[str, Any] = {}
        for key, value in raw.items():
            if key not in known:
                self._fault(table, key_name(key), "an unknown key", one_of(known, key))
            elif key not in but:
                try:
                    good[key] = known[key].reader(value, self._directory)
                except ParseError as error:
                    for one in error:
                        inner = _WITHIN.fullmatch(one.key)
                        if inner is not None:  # a table of its own, written [table.key]
                            self._note(f"{table}.{key}{inner[1]}", inner[2], one.message)
                        else:
                            self._note(table, key + one.key, one.message)
        return good

    def _upstreams(self, raw: object, flag_url: object) -> tuple[Upstream, ...]:
        """All upstreams, of which one is the default, whose base URL a flag may replace."""
        if not isinstance(raw, dict):
            self._fault("upstreams", "", shown(raw), "tables, such as [upstreams.openai]")
            raw = {}
        tables = raw or {Upstream().name: {}}
        claimed = [name for name, table in tables.items() if isinstance(table, dict) and table.get("default") is True]
        default = next(iter(tables)) if len(tables) == 1 else claimed[0] if len(claimed) == 1 else None
        if default is None:
            found = f"default = true in {' and '.join(map(key_name, claimed)) or 'none of them'}"
            self._fault("upstreams", "", found, f"it in exactly one of {', '.join(map(key_name, tables))}")
        made = []
        for upstream, table in tables.items():
            label = f"upstreams.{key_name(upstream)}"
            overridden = upstream == default and flag_url is not None
            good = self._section(label, table, kind="upstreams", but=["base_url"] if overridden else [])
            try:
                name(upstream)
            except ParseError as error:
                self._note(label, "", error.message)
            if len(tables) == 1 and good.get("default") is False:
                self._fault(label, "default", "false", "true, or no such key: the only upstream is the default")
            targets = isinstance(table, dict) and "targets" in table
            needed = upstream != Upstream().name and not overridden and not targets
            if needed and isinstance(table, dict) and "base_url" not in table:
                self._fault(label, "base_url", "nothing", "the provider's base URL, such as https://api.openai.com/v1")
            if overridden and targets:
                do = f"the targets of {key_name(upstream)} have their own in the file"
                self.faults.append(ParseError.found("a base URL beside targets", "no such flag", do))
                self.faults[-1].key = "--upstream"
            elif overridden:
                self._flag("upstream", base_url, flag_url, good, "base_url")
            if isinstance(table, dict) and targets:
                self._targets(label, table, good)
            self._ways(label, table, good)
            self._bounds(label, good)
            made.append(Upstream(**(good | {"name": upstream, "default": upstream == default})))
        if default is None and flag_url is not None:
            self._flag("upstream", base_url, flag_url, {})
        self._no_shared_selectors(made)
        self._fallbacks(made)
        return tuple(made)

    def _targets(self, label: str, table: dict[str, Any], good: dict[str, Any]) -> None:
        """An upstream with targets is where these are; all of them get the operator's key, or none."""
        if "base_url" in table:
            self._fault(label, "base_url", "it beside targets", "no such key: each target has its own")
        targets: tuple[Target, ...] = good.get("targets", ())
        if table["targets"] == {}:
            self._fault(label, "targets", "no target", f"at least one table [{label}.targets.NAME]")
        if targets:
            good["base_url"] = targets[0].base_url
        without = [one.name for one in targets if one.api_key_file is None]
        if "api_key_file" not in table and without and len(without) < len(targets):
            found = f"none in {' and '.join(map(key_name, without))}, and one in the others"
            self._fault(label, "targets", f"api_key_file: {found}", "one for each target, or for none")

    def _ways(self, label: str, table: object, good: dict[str, Any]) -> None:
        """The ways to an upstream and to its targets: a proxy or a socket, a certificate with its key."""
        places = {label: (table, good)}
        raw = table.get("targets") if isinstance(table, dict) else None
        if isinstance(raw, dict):
            read = {one.name: asdict(one, recurse=False) for one in good.get("targets", ())}
            places |= {f"{label}.targets.{key_name(one)}": (raw[one], read.get(one, {})) for one in raw}
        for where, (written_there, values) in places.items():
            for key, found, expected in misfits(written_there, values):
                self._fault(where, key, found, expected)

    def _bounds(self, label: str, good: dict[str, Any]) -> None:
        """What grows does not begin above its bound."""
        retry, health = good.get("retry"), good.get("health")
        if retry is not None and retry.backoff > retry.backoff_max:
            found = f"{retry.backoff_max:g}, and backoff = {retry.backoff:g}"
            self._fault(f"{label}.retry", "backoff_max", found, "no less than backoff")
        if health is not None and health.eject > health.eject_max:
            found = f"{health.eject_max:g}, and eject = {health.eject:g}"
            self._fault(f"{label}.health", "eject_max", found, "no less than eject")

    def _fallbacks(self, upstreams: list[Upstream]) -> None:
        """Each fallback is another upstream with a key of its own, and no request comes back to where it was."""
        by_name = {one.name: one for one in upstreams}
        for upstream in upstreams:
            fallback = upstream.fallback
            if fallback is None:
                continue
            label = f"upstreams.{key_name(upstream.name)}.fallback"
            to = by_name.get(fallback.to)
            if to is None:
                self._fault(label, "to", shown(fallback.to), f"another upstream: {one_of(by_name, fallback.to)}")
                continue
            if not has_key(to) and "api_key_file" not in {_bare(one.key) for one in self.faults}:
                found = f"{shown(to.name)}, which has no api_key_file"
                self._fault(label, "to", found, "an upstream with a provider key of its own: the client's is for "
                            f"{upstream.name} alone")  # fmt: skip
            way = [upstream.name]
            while fallback is not None and fallback.to in by_name and fallback.to not in way:
                way.append(fallback.to)
                fallback = by_name[fallback.to].fallback
            if fallback is not None and fallback.to == upstream.name:
                found = f"a circle: {' to '.join([*way, upstream.name])}"
                self._fault(label, "to", found, "fallbacks that end")

    def _prices(self, raw: object) -> tuple[Price, ...]:
        """What models cost, a table for each pattern of their names."""
        if not isinstance(raw, dict):
            self._fault("prices", "", shown(raw), "tables, such as [prices.'my-model*']")
            return ()
        made = []
        for pattern, table in raw.items():
            label = f"prices.{key_name(pattern)}"
            if self._unquoted(pattern, table):
                continue
            try:
                model_pattern(pattern)
            except ParseError as error:
                self._note(label, "", error.message)
            made.append(Price(pattern, **self._section(label, table, kind="prices")))
            if isinstance(table, dict) and not table.keys() & {"input", "audio_minute"}:
                self._fault(label, "input", "nothing", f"US dollars for a million tokens, from 0 to {MAX_DOLLARS}")
        return tuple(made)

    def _unquoted(self, name: str, table: object) -> bool:
        """Note models' names with dots that stand without quotes: TOML makes tables within tables of them.

        :return: whether there is nothing else in the table.
        """
        if not isinstance(table, dict):
            return False
        inner = [key for key, value in table.items() if isinstance(value, dict)]
        for key in inner:
            whole = f"{name}.{key}"
            if not self._unquoted(whole, table.pop(key)):
                found = f"the name {shown(whole)} without quotes, of which TOML makes a table within another"
                self._fault(f"prices.{key_name(name)}", key_name(key), found, f"[prices.{shown(whole)}], with quotes")
        return bool(inner) and not table

    def _flag(self, key: str, read: Reader, value: object, good: dict[str, Any], into: str = "") -> None:
        """Read a flag's value as the file's would be read, and put it into *good*."""
        if key == "listen" and isinstance(value, list | tuple):
            value = list(value)
        elif key == "workers" and isinstance(value, str) and re.fullmatch("[0-9]{1,9}", value):
            value = int(value)
        elif isinstance(value, Path):
            value = str(value)
        try:
            good[into or key] = read(value, self._working)
        except ParseError as error:
            self.faults += [ParseError(one.message, key=f"--{key}") for one in error]

    def _no_shared_selectors(self, upstreams: list[Upstream]) -> None:
        """One host, and one pattern of models, selects one upstream."""
        for key, what in (("hosts", "a host"), ("models", "a pattern")):
            owners: dict[str, str] = {}
            for upstream in upstreams:
                for selector in getattr(upstream, key):
                    owner = owners.setdefault(selector, upstream.name)
                    if owner != upstream.name:
                        found = f"{shown(selector)}, which selects {key_name(owner)}"
                        label = f"upstreams.{key_name(upstream.name)}"
                        self._fault(label, key, found, f"{what} in one upstream only")

    def _no_clashes(self, server: Server, flags: Mapping[str, object]) -> None:
        """No two listeners on one address: the operating system would refuse the second when the first is bound."""
        blamed = {_bare(fault.key) for fault in self.faults}
        listeners = [("listen", text) for text in server.listen] + [("admin", text) for text in [server.admin] if text]
        for (one_key, one), (key, other) in combinations(listeners, 2):
            if blamed & {one_key, key}:
                continue  # a default stands there in place of what was meant
            here, there = endpoints.address(one), endpoints.address(other)
            if one == other if here is None or there is None else here.clashes(there):
                found, expected = f"{shown(other)} beside {shown(one)}", "another address for each listener"
                if key in flags:
                    self.faults.append(ParseError(f"found {found}, expected {expected}", key=f"--{key}"))
                else:
                    self._fault("server", key, found, expected)
        for number, text in enumerate(server.listen if server.proxy_protocol else ()):
            if endpoints.kind_of(text) == "ssl":
                found = f"{shown(text)} beside proxy_protocol = true"
                self._fault("server", f"listen[{number}]", found, "tcp: or unix: there, with TLS ended by the proxy, "
                            "since its header comes before TLS")  # fmt: skip

    def _can_reconcile(self, settings: Settings) -> None:
        """What asks by itself needs a key to ask with, and a place where all workers keep what to ask for."""
        blamed = {_bare(fault.key) for fault in self.faults}
        if not settings.reconcile.enabled:
            return
        if settings.server.state is None and "state" not in blamed:
            self._fault("reconcile", "enabled", "true without a state directory", "it with [server] state, where open "
                        "work is kept, or false")  # fmt: skip
        if not any(map(has_key, settings.upstreams)) and "api_key_file" not in blamed:
            self._fault("reconcile", "enabled", "true, and no upstream with an api_key_file", "one in each upstream "
                        "that is to be asked, or false")  # fmt: skip

    def _can_manage(self, settings: Settings) -> None:
        """Who may change keys shows a token of their own, and each change is written down."""
        admin, blamed = settings.admin, {_bare(fault.key) for fault in self.faults}
        if admin.token_file is not None and admin.token_file == admin.manage_token_file:
            self._fault("admin", "manage_token_file", "the file of token_file", "another: who may look may not change")
        if not admin.manage_keys:
            return
        if admin.manage_token_file is None and "manage_token_file" not in blamed:
            self._fault("admin", "manage_keys", "true without manage_token_file", "it with the file of a token for "
                        "those who may, or false")  # fmt: skip
        if settings.server.state is None and "state" not in blamed:
            self._fault("admin", "manage_keys", "true without a state directory", "it with [server] state, where each "
                        "change is written down, or false")  # fmt: skip

    def _can_share(self, settings: Settings) -> None:
        """What says how to reach a service needs one to reach."""
        shared, blamed = settings.shared, {_bare(fault.key) for fault in self.faults}
        if shared.redis is None and "redis" not in blamed:
            for key in ("redis_password_file", "redis_ca_file", "redis_sentinels"):
                if getattr(shared, key):
                    self._fault("shared", key, "it without redis", "redis too, such as redis://127.0.0.1:6379, or no "
                                "such key")  # fmt: skip
        elif shared.redis is not None and shared.redis_ca_file is not None and shared.redis.startswith("redis:"):
            self._fault("shared", "redis_ca_file", "it beside redis://", "rediss://, or no such key: without TLS there "
                        "is no certificate to verify")  # fmt: skip
        if shared.postgres is None and "postgres" not in blamed:
            for key in ("postgres_password_file", "postgres_ca_file", "postgres_days"):
                if getattr(shared, key) is not None:
                    self._fault("shared", key, "it without postgres", "postgres too, such as "
                                "postgresql://flowstack@127.0.0.1/flowstack, or no such key")  # fmt: skip
        elif shared.postgres is not None and shared.postgres_ca_file is not None and not shared.postgres_tls:
            self._fault("shared", "postgres_ca_file", "it beside postgres_tls = false", "true, or no such key: without "
                        "TLS there is no certificate to verify")  # fmt: skip
        if shared.postgres is not None and settings.server.state is None and "state" not in blamed:
            self._fault("shared", "postgres", "it without a state directory", "[server] state too: what is sent is "
                        "read from the ledger there")  # fmt: skip

    def look_at_places(self, settings: Settings, flags: Mapping[str, object]) -> None:
        """Note each place that could not be written to, but for those of settings that are at fault already, and what
        is not installed."""
        if settings.shared.postgres is not None and find_spec("psycopg") is None:
            self._fault("shared", "postgres", "no psycopg, which reaches it", "it installed: pip install "
                        "'flowstack[postgres]'")  # fmt: skip
        blamed = {(fault.table, _bare(fault.key)) for fault in self.faults}
        for place in misplaced(settings):
            key = _bare(place.key)
            if place.table == "server" and key in flags:
                if ("", key) not in blamed:
                    message = f"found {place.found}, expected {place.expected}"
                    self.faults.append(ParseError(message, key=f"--{key}"))
            elif (place.table, key) not in blamed:
                self._fault(place.table, place.key, place.found, place.expected)

    def _unknown_at_top(self, key: str, value: object) -> None:
        """Say where a key belongs that stands before any table, or which tables there are."""
        if isinstance(value, dict):
            close = get_close_matches(key, TABLES, n=1)
            hint = f" (did you mean {written(close[0])}?)" if close else ""
            self._fault(key_name(key), "", "an unknown table", _TABLES_EXPECTED + hint)
        else:
            home = [table for table, cls in TABLES.items() if key in settings_of(cls)]
            self._fault(
                "", key_name(key), "a key outside any table", f"it in {written(home[0])}" if home else _TABLES_EXPECTED
            )

    def _fault(self, table: str, key: str, found: str, expected: str) -> None:
        self._note(table, key, f"found {found}, expected {expected}")

    def _note(self, table: str, key: str, message: str) -> None:
        self.faults.append(ParseError(message, file=self._file_name, table=table, key=key))

    def _syntax_fault(self, before: bytes, found: str, expected: str) -> None:
        """Note a fault that follows these bytes."""
        line = before.count(b"\n") + 1
        column = len(before.rpartition(b"\n")[2].decode("utf-8", "replace")) + 1
        message = f"found {found}, expected {expected}"
        self.faults.append(ParseError(message, file=self._file_name, line=line, column=column))


def _bare(key: str) -> str:
    """A setting's name, without where in it, or that it was a flag."""
    return key.lstrip("-").partition("[")[0]


def _up_to(text: bytes, line: int, column: int) -> bytes:
    """What stands before a position that counts characters from 1."""
    lines = text.decode("utf-8").replace("\r\n", "\n").split("\n")
    return "\n".join([*lines[: line - 1], lines[line - 1][: column - 1]]).encode("utf-8")

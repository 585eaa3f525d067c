"""What operators read about the settings is made from the settings, and agrees with them."""

from __future__ import annotations

import re
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest
from attrs import fields

from flowstack.config import ConfigError, Price, Settings, parse
from flowstack.config.parse import FLAGS
from flowstack.config.settings import OF_UPSTREAMS, TABLES, Fallback, Retry, Target
from flowstack.config.values import settings_of
from scripts.settings import OFF, example, settings_reference

ROOT = Path(__file__).parents[2]
EXAMPLE = (ROOT / "etc/flowstack.toml").read_text()
PAGE = (ROOT / "docs/reference/settings.rst").read_text()
GENERATED = settings_reference()

SETTINGS = {
    ("upstreams.openai" if table == "upstreams" else table, name)
    for table, cls in TABLES.items()
    if table != "prices"
    for name, setting in settings_of(cls).items()
    if setting.text
} | {
    (f"upstreams.openai.{table}", name)
    for table, cls in OF_UPSTREAMS.items()
    if cls not in OFF
    for name in settings_of(cls)
}
"""Every table and key that there is, but for those tables that are off until they are there."""

SWITCHES = {
    (f"upstreams.openai.{table.replace('TARGET', 'west')}", name)
    for table, cls in OF_UPSTREAMS.items()
    if cls in OFF
    for name in settings_of(cls)
}
"""The keys of those, but for prices, which have no defaults."""

AZURE = """
[upstreams.azure]
base_url = "https://azure.example/v1"
api_key_file = "/etc/flowstack/azure.secret"
[upstreams.openai]
default = true
"""

BESIDE = {
    "client_cert_file": 'client_key_file = "/etc/flowstack/tls/client-key.pem"\n',
    "client_key_file": 'client_cert_file = "/etc/flowstack/tls/client.pem"\n',
    "proxy_auth_file": 'proxy = "http://proxy.example:3128"\n',
    "redis_password_file": 'redis = "redis://127.0.0.1:6379"\n',
    "redis_ca_file": 'redis = "rediss://127.0.0.1:6379"\n',
    "redis_sentinels": 'redis = "redis://main"\n',
    "postgres": '[server]\nstate = "state"\n[shared]\n',
    **dict.fromkeys(
        ("postgres_password_file", "postgres_ca_file", "postgres_days"),
        '[server]\nstate = "state"\n[shared]\npostgres = "postgresql://flowstack@127.0.0.1/flowstack"\n',
    ),
}
"""What a setting needs beside it."""

PRICE_KEYS = [field.name for field in fields(Price) if field.name != "model"]


def settings_in(document: str) -> set[tuple[str, str]]:
    tables = tomllib.loads(document)
    upstreams = tables.pop("upstreams")
    for name, table in upstreams.items():
        tables[f"upstreams.{name}"] = table
        for inner in {one.partition(".")[0] for one in OF_UPSTREAMS} & table.keys():
            if inner == "targets":
                tables |= {f"upstreams.{name}.targets.{target}": one for target, one in table.pop(inner).items()}
            else:
                tables[f"upstreams.{name}.{inner}"] = table.pop(inner)
    return {(table, key) for table, items in tables.items() for key in items}


def switched_on(text: str) -> str:
    return re.sub(r"(?m)^#(?=[a-z])", "", text)


def documented(tables: set[str]) -> str:
    """The defaults that the reference states of these tables, as TOML."""
    lines, stated = [], False
    for heading, default in re.findall(r"(?m)^``\[([\w.]+)\]``$|^:Default: ``(.*)``$", GENERATED):
        if heading:
            table = heading.replace("NAME", "openai").replace("TARGET", "west")
            stated = table in tables
        if stated:
            lines.append(f"[{table}]" if heading else default)
    return "\n".join(lines)


def examples() -> list[str]:
    """Those of the manual's pages and the README, and each setting's own."""
    pages = "".join(page.read_text("utf-8") for page in (ROOT / "README.rst", *sorted((ROOT / "docs").rglob("*.rst"))))
    blocks = re.findall(r"(?m)^\.\. code-block:: toml\n\n((?:   .*\n|\n)+)", pages)
    found = [re.sub(r"(?m)^   ", "", block) for block in blocks]
    within = {f"upstreams.openai.{table.replace('TARGET', 'west')}": cls for table, cls in OF_UPSTREAMS.items()}
    for table, cls in (TABLES | within).items():
        heading = {"upstreams": "upstreams.openai", "prices": "prices.x"}.get(table, table)
        for name, setting in settings_of(cls).items():
            others = "input = 1\n" if table == "prices" and name not in ("input", "audio_minute") else ""
            if cls is Target and name != "base_url":
                others = "base_url = 'https://west.example/v1'\n"
            elif cls is Fallback:
                others = f"{AZURE}[{heading}]\n" + ("" if name == "to" else "to = 'azure'\n")
            others += BESIDE.get(name, "")
            before = others if others.lstrip().startswith("[") else f"[{heading}]\n{others}"
            found += [f"{before}{name} = {value}" for value, _ in setting.examples]
    return found


def test_the_example_file_is_what_the_table_of_settings_says() -> None:
    assert example() == EXAMPLE, "run: make settings"


def test_the_example_as_it_is_shipped_means_the_defaults() -> None:
    assert parse(EXAMPLE.encode(), "flowstack.toml") == Settings()


def test_the_example_switched_on_means_the_defaults_too() -> None:
    assert switched_on(EXAMPLE) != EXAMPLE
    assert parse(switched_on(EXAMPLE).encode(), "flowstack.toml") == Settings()


def test_the_example_holds_every_setting_and_no_other() -> None:
    assert settings_in(switched_on(EXAMPLE)) == SETTINGS


def test_the_example_shows_every_key_of_a_price() -> None:
    shown = re.sub(r"(?m)^# (?=\[prices|\w+ = )", "", EXAMPLE[EXAMPLE.index("\n# [prices") :])
    priced = tomllib.loads(shown)["prices"]
    assert [[*keys] for keys in priced.values()] == [PRICE_KEYS]
    assert parse(shown.encode(), "flowstack.toml").prices == (Price("my-model*", **priced["my-model*"]),)


def test_every_setting_of_the_example_is_explained_above_it() -> None:
    lines = EXAMPLE.splitlines()
    for before, line in pairwise(lines):
        if re.match("#[a-z]", line):
            assert before.startswith("# "), line


def test_the_reference_states_every_default() -> None:
    text = documented({table for table, _ in SETTINGS})
    assert settings_in(text) == SETTINGS
    assert parse(text.encode(), "flowstack.toml") == Settings()


def test_the_reference_states_the_defaults_of_tables_that_are_off(secret_file: Path) -> None:
    text = documented({table for table, _ in SWITCHES})
    required = {("upstreams.openai.targets.west", "base_url"), ("upstreams.openai.fallback", "to")}
    assert settings_in(text) == SWITCHES - required
    west, to = "[upstreams.openai.targets.west]\n", "[upstreams.openai.fallback]\n"
    text = text.replace(west, f"{west}base_url = 'https://west.example/v1'\n").replace(to, f"{to}to = 'azure'\n")
    azure = f"[upstreams.azure]\nbase_url = 'https://azure.example/v1'\napi_key_file = '{secret_file.name}'\n"
    text = f"[upstreams.openai]\ndefault = true\n{azure}{text}"
    openai = parse(text.encode(), str(secret_file.with_name("flowstack.toml"))).upstreams[0]
    assert openai.retry == Retry()
    assert openai.targets == (Target("west", "https://west.example/v1"),)
    assert openai.fallback == Fallback("azure")


def test_the_example_shows_every_key_of_a_table_that_is_off() -> None:
    shown = re.sub(r"(?m)^# (?=\[upstreams|\w+ = )", "", EXAMPLE[: EXAMPLE.index("\n# [prices")])
    assert settings_in(shown) >= SWITCHES


def test_the_reference_has_a_place_for_every_setting() -> None:
    places = re.findall(r"(?m)^\.\. _setting-([\w.]+)-(\w+):$", GENERATED)
    expected = {
        (table.replace("upstreams.openai", "upstreams").replace(".west", ""), key) for table, key in SETTINGS | SWITCHES
    }
    assert sorted(places) == sorted(expected | {("prices", key) for key in PRICE_KEYS})


def test_the_reference_names_every_flag() -> None:
    assert [flag for flag in FLAGS if f"``--{flag} " not in PAGE] == []


@pytest.mark.parametrize("text", examples())
def test_an_example_of_the_manual_is_taken(text: str, tls: Path, secret_file: Path) -> None:
    if "[upstreams.local]" in text:  # an addition to what is there
        text = f"[upstreams.openai]\ndefault = true\n{text}"
    for path in re.findall("/etc/flowstack/[a-z-]+\\.(?:secret|token)", text):
        mine = secret_file.with_name(Path(path).name)  # each its own: no two tokens share a file
        mine.write_bytes(b"user:password" if mine.name == "proxy.secret" else secret_file.read_bytes())
        mine.chmod(0o600)
        text = text.replace(path, str(mine))
    parse(text.replace("/etc/flowstack/tls", str(tls)).encode(), "flowstack.toml")


def test_the_faults_that_the_reference_shows_are_those_that_are_told() -> None:
    name = "/etc/flowstack/flowstack.toml"
    with pytest.raises(ConfigError) as caught:
        parse(b"[server]\nforwarded = 'apend'\n[timeouts]\nconect = 1", name)
    shown = re.findall(rf"(?m)^    ({name}: .*)$", PAGE)
    assert shown
    for fault, line in zip(caught.value.faults, shown, strict=True):
        assert str(fault).startswith(line.removesuffix("..."))


def test_the_bounds_that_the_reference_states_are_those_that_are_checked() -> None:
    text = "[server]\nworkers = 1025\nmax_head_bytes = 1023\n[upstreams.openai]\nmax_connections = 1048577"
    text += "\n[ledger]\nqueue_bytes = -1\nmax_file_bytes = 0\nretention_days = -1\n[estimates]\noutput_tokens = 0"
    with pytest.raises(ConfigError) as caught:
        parse(text.encode(), "f")
    for fault in caught.value.faults:
        section = GENERATED.partition(f"\n``{fault.key}``\n~~~")[2].partition(".. _setting-")[0]
        bounds = re.findall(r"\b\d{4,}\b", fault.message.partition("expected")[2])
        assert bounds
        assert all(bound in section for bound in bounds)

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flowstack.config import ConfigError
from flowstack.config.settings import TABLES, Timeouts
from flowstack.config.values import settings_of
from flowstack.errors import ParseError
from flowstack.keys.attributes import ATTRIBUTES
from flowstack.notation import BUDGET, NETWORK
from tests.config.faults import PATH, SECONDS, URL, WORKERS, lines_of, openai, parsed, server
from tests.rights import public_folder, told_as_nobody

PREFIX = "a path that begins and ends with '/', such as /v1/, without dot segments, empty segments or percent-encoding"
NOT_OWN = "another path: what is below /flowstack/ is answered by Flowstack itself"
ORIGIN = "'*', or scheme://host or scheme://host:port in lower case, such as https://app.example"
PORTED_ORIGIN = f"{ORIGIN}; a port from 1 to 65535, and not the scheme's own"
FIELD = "a header's name, such as X-Team, or a beginning such as X-Team-*"
KEY_FIELD = "the header in which the provider takes its key: Authorization, api-key, x-api-key or another such"
DOLLARS = "US dollars for a million tokens, from 0 to 1000000"
HOST = "a host name without a port, such as openai.flowstack.example"

SERVER_VALUES = {
    "listen = 'tcp:80'": "listen: found 'tcp:80', expected an array with at least one item",
    "listen = []": "listen: found an empty array, expected an array with at least one item",
    "listen = ['tcp:1', 5]": "listen[1]: found 5, expected an endpoint string such as tcp:8080:interface=127.0.0.1",
    "listen = ['tcp']": "listen[0]: found 'tcp' without its port, expected tcp:PORT[:interface=ADDRESS]",
    "listen = ['tcp:1', 'tcp:1:interface=127.0.0.1']": "listen: found 'tcp:1:interface=127.0.0.1' beside 'tcp:1', "
    "expected another address for each listener",
    "admin = 'tcp:8080'": "admin: found 'tcp:8080' beside 'tcp:8080:interface=127.0.0.1', expected another address for "
    "each listener",
    "listen = ['systemd:domain=INET:index=0']\nadmin = 'systemd:domain=INET:index=0'": "admin: found "
    "'systemd:domain=INET:index=0' beside 'systemd:domain=INET:index=0', expected another address for each listener",
    "admin = true": "admin: found true, expected an endpoint string such as tcp:8080:interface=127.0.0.1",
    "keys = ''": f"keys: found '', expected {PATH}",
    'keys = "a\\u0000"': f"keys: found 'a\\x00', expected {PATH}",
    "state = 5": f"state: found 5, expected {PATH}",
    "workers = true": f"workers: found true, expected {WORKERS}",
    "workers = -1": f"workers: found -1, expected {WORKERS}",
    "workers = 1.0": f"workers: found 1.0, expected {WORKERS}",
    "workers = '2'": f"workers: found '2', expected {WORKERS}",
    "workers = 100000": f"workers: found 100000, expected {WORKERS}",
    "prefixes = []": "prefixes: found an empty array, expected an array with at least one item",
    "prefixes = ['v1']": f"prefixes[0]: found 'v1', expected {PREFIX}",
    "prefixes = ['/v1']": f"prefixes[0]: found '/v1', expected {PREFIX}",
    "prefixes = ['//']": f"prefixes[0]: found '//', expected {PREFIX}",
    "prefixes = ['/a//b/']": f"prefixes[0]: found '/a//b/', expected {PREFIX}",
    "prefixes = ['/a/../b/']": f"prefixes[0]: found '/a/../b/', expected {PREFIX}",
    "prefixes = ['/./']": f"prefixes[0]: found '/./', expected {PREFIX}",
    "prefixes = ['/%76/']": f"prefixes[0]: found '/%76/', expected {PREFIX}",
    "prefixes = ['/é/']": f"prefixes[0]: found '/é/', expected {PREFIX}",
    "prefixes = ['/a b/']": f"prefixes[0]: found '/a b/', expected {PREFIX}",
    'prefixes = ["/a/\\n"]': f"prefixes[0]: found '/a/\\n', expected {PREFIX}",
    "prefixes = ['/?/']": f"prefixes[0]: found '/?/', expected {PREFIX}",
    "prefixes = ['/flowstack/']": f"prefixes[0]: found '/flowstack/', expected {NOT_OWN}",
    "prefixes = [{path = '/flowstack/v1/'}]": f"prefixes[0].path: found '/flowstack/v1/', expected {NOT_OWN}",
    "prefixes = [1]": f"prefixes[0]: found 1, expected {PREFIX}",
    "prefixes = ['/a/', {path = '/a/', base_path = '/b/'}]": "prefixes[1]: found '/a/' a second time, expected each "
    "only once",
    "prefixes = [{base_path = '/b/'}]": "prefixes[0].path: found nothing, expected the path that clients ask for, such "
    "as /v1/",
    "prefixes = [{path = '/a/', base_path = '/b'}]": f"prefixes[0].base_path: found '/b', expected {PREFIX}",
    "prefixes = [{path = '/a/', base = '/b/'}]": "prefixes[0].base: found an unknown key, expected one of path, "
    "base_path (did you mean base_path?)",
    "max_request_bytes = '512MiB'": "max_request_bytes: found '512MiB', expected a whole number of bytes from 1 to "
    "9223372036854775807",
    "max_request_bytes = 0": "max_request_bytes: found 0, expected a whole number of bytes from 1 to "
    "9223372036854775807",
    "max_head_bytes = 100": "max_head_bytes: found 100, expected a whole number of bytes from 1024 to 16777216",
    f"max_head_bytes = 0x{'f' * 9000}": "max_head_bytes: found a very large number, expected a whole number of bytes "
    "from 1024 to 16777216",
    "cors_origins = '*'": "cors_origins: found '*', expected an array",
    "cors_origins = ['https://x/']": f"cors_origins[0]: found 'https://x/', expected {ORIGIN}",
    "cors_origins = ['https://X']": f"cors_origins[0]: found 'https://X', expected {ORIGIN}",
    "cors_origins = ['x.example']": f"cors_origins[0]: found 'x.example', expected {ORIGIN}",
    "cors_origins = ['null']": f"cors_origins[0]: found 'null', expected {ORIGIN}",
    "cors_origins = [{}]": f"cors_origins[0]: found a table, expected {ORIGIN}",
    "cors_origins = ['https://x:443']": f"cors_origins[0]: found 'https://x:443', expected {PORTED_ORIGIN}",
    "cors_origins = ['https://x:70000']": f"cors_origins[0]: found 'https://x:70000', expected {PORTED_ORIGIN}",
    "forwarded = 'apend'": "forwarded: found 'apend', expected one of remove, pass, append (did you mean append?)",
    "forwarded = []": "forwarded: found an array, expected one of remove, pass, append",
    "docs_url = 'docs.example'": "docs_url: found 'docs.example', expected http:// or https://, a host, perhaps a port "
    "and a path, such as https://api.openai.com/v1",
    "server_timing = 1": "server_timing: found 1, expected true or false",
    "trusted_proxies = '10.0.0.0/8'": "trusted_proxies: found '10.0.0.0/8', expected an array",
    "trusted_proxies = ['10.0.0.0/33']": f"trusted_proxies[0]: found '10.0.0.0/33', expected {NETWORK}",
    "trusted_proxies = ['10.0.0.0/255.0.0.0']": f"trusted_proxies[0]: found '10.0.0.0/255.0.0.0', expected {NETWORK}",
    "trusted_proxies = ['fe80::1%eth0']": f"trusted_proxies[0]: found 'fe80::1%eth0', expected {NETWORK}",
    "trusted_proxies = ['proxy.example', 5, '']": [
        f"trusted_proxies[0]: found 'proxy.example', expected {NETWORK}",
        f"trusted_proxies[1]: found 5, expected {NETWORK}",
        f"trusted_proxies[2]: found '', expected {NETWORK}",
    ],
    "trusted_proxies = ['10.0.0.1/8']": "trusted_proxies[0]: found '10.0.0.1/8', whose address has bits set beyond its "
    "prefix, expected 10.0.0.0/8 for the network, or 10.0.0.1 for the one address",
    "trusted_proxies = ['::ffff:1.2.3.4']": "trusted_proxies[0]: found '::ffff:1.2.3.4', an IPv4 address written as "
    "IPv6, expected it written as IPv4, as that is how clients are seen",
    "trusted_proxies = ['192.0.2.7', '192.0.2.7/32']": "trusted_proxies[1]: found '192.0.2.7/32' a second time, "
    "expected each only once",
    "remove_headers = 'X-Team'": "remove_headers: found 'X-Team', expected an array",
    "remove_headers = ['a b', 5, '', '*']": [
        f"remove_headers[0]: found 'a b', expected {FIELD}",
        f"remove_headers[1]: found 5, expected {FIELD}",
        f"remove_headers[2]: found '', expected {FIELD}",
        f"remove_headers[3]: found '*', expected {FIELD}",
    ],
    "remove_headers = ['X-Team', 'x_team']": "remove_headers[1]: found 'x-team' a second time, expected each only once",
    **{
        f"remove_headers = ['{name}']": f"remove_headers[0]: found '{name}', which takes out {kept}, expected {FIELD}; "
        "not what frames a request, says what its body is, or holds the provider's key"
        for name, kept in [
            ("Authorization", "authorization"),
            ("auth*", "authorization"),
            ("x-*", "x-api-key"),
            ("Host", "host"),
            ("api_key", "api-key"),
            ("Content-Type", "content-*"),
            ("content*", "content-*"),
            ("c*", "content-*"),
            ("content-x*", "content-*"),
            ("Transfer-Encoding", "transfer-encoding"),
            ("Connection", "connection"),
            ("flowstack-auth", "flowstack-*"),
        ]
    },
    "proxy_protocol = 2": "proxy_protocol: found 2, expected true or false",
    "server_timing = 2026-01-01": "server_timing: found 2026-01-01, expected true or false",
}

OTHER_VALUES = {
    "[log]\nformat = 'xml'": "[log] format: found 'xml', expected one of json, text",
    "[ledger]\non_ledger_failure = 'server'": "[ledger] on_ledger_failure: found 'server', expected one of serve, "
    "refuse (did you mean serve?)",
    "[ledger]\nqueue_bytes = -1": "[ledger] queue_bytes: found -1, expected a whole number of bytes from 0 to "
    "1099511627776",
    "[limits]\nbudget_status = 400": "[limits] budget_status: found 400, expected one of 429, 402, 403, 422",
    "[limits]\nbudget_status = '402'": "[limits] budget_status: found '402', expected one of 429, 402, 403, 422",
    "[limits]\nbudget_status = 402.0": "[limits] budget_status: found 402.0, expected one of 429, 402, 403, 422",
    "[ledger]\nfsync = true": "[ledger] fsync: found true, expected one of never, second, row",
    "[ledger]\nmax_file_bytes = 1": "[ledger] max_file_bytes: found 1, expected a whole number of bytes from 4096 to "
    "1099511627776",
    "[ledger]\nretention_days = 1.5": "[ledger] retention_days: found 1.5, expected a whole number of days from 0 to "
    "36500",
    "[ledger]\nindex = 1": "[ledger] index: found 1, expected true or false",
    "[ledger]\ninject_usage = 'on'": "[ledger] inject_usage: found 'on', expected true or false",
    "[limits]\nrpm = 0": "[limits] rpm: found 0, expected a whole number of requests a minute from 1 to "
    "999999999999999",
    "[limits]\ntpm = '1k'": "[limits] tpm: found '1k', expected a whole number of tokens a minute from 1 to "
    "999999999999999",
    "[limits]\nmax_parallel = true": "[limits] max_parallel: found true, expected a whole number of requests at once "
    "from 1 to 1000000",
    "[limits]\nbudget = 50": f"[limits] budget: found 50, expected {BUDGET}",
    openai("limits.budget = '50usd'"): f"[upstreams.openai.limits] budget: found '50usd', expected {BUDGET}",
    "[estimates]\noutput_tokens = 0": "[estimates] output_tokens: found 0, expected a whole number of tokens from 1 to "
    "1000000000",
    "[estimates]\nprice = -1": f"[estimates] price: found -1, expected {DOLLARS}",
    "[prices.x]\ninput = nan": f"[prices.x] input: found nan, expected {DOLLARS}",
    "[prices.x]\ninput = inf": f"[prices.x] input: found inf, expected {DOLLARS}",
    "[prices.x]\ninput = 1000000.5": f"[prices.x] input: found 1000000.5, expected {DOLLARS}",
    "[prices.x]\ninput = true": f"[prices.x] input: found true, expected {DOLLARS}",
    "[prices.x]\ninput = ''": f"[prices.x] input: found '', expected {DOLLARS}",
    "[prices.x]\noutput = 1": f"[prices.x] input: found nothing, expected {DOLLARS}",
}

UPSTREAM_VALUES = {
    **{
        f"api_key_header = {value}": f"api_key_header: found {value}, expected {KEY_FIELD}"
        for value in ("''", "5", "'a b'", "'Host'", "'content-type'", "'Flowstack-Auth'", "'connection'", "'Cookie'")
    },
    "base_url = 'ftp://x'": f"base_url: found 'ftp://x', expected {URL}",
    "base_url = 'api.openai.com/v1'": f"base_url: found 'api.openai.com/v1', expected {URL}",
    "base_url = 'https://'": f"base_url: found 'https://', expected {URL}",
    "base_url = 'https:///v1'": f"base_url: found 'https:///v1', expected {URL}",
    "base_url = 'https://x/a b'": f"base_url: found 'https://x/a b', expected {URL}",
    'base_url = "https://x/a\\nb"': f"base_url: found 'https://x/a\\nb', expected {URL}",
    "base_url = ' https://x'": f"base_url: found ' https://x', expected {URL}",
    "base_url = 'https://é'": f"base_url: found 'https://é', expected {URL}",
    "base_url = 'https://x/%zz'": f"base_url: found 'https://x/%zz', expected {URL}",
    "base_url = 'https://x/a/%2E./'": f"base_url: found 'https://x/a/%2E./', expected {URL}; no dot segments, no empty "
    "segments in the path",
    "base_url = 'https://x//v1'": "base_url: found 'https://x//v1', expected "
    f"{URL}; no dot segments, no empty segments in the path",
    "base_url = 'https://x:0'": f"base_url: found 'https://x:0', expected {URL}; a port from 1 to 65535, an "
    "IPv6 address in brackets",
    "base_url = 'https://x:99999'": f"base_url: found 'https://x:99999', expected {URL}; a port from 1 to 65535, an "
    "IPv6 address in brackets",
    "base_url = 'https://[::1'": f"base_url: found 'https://[::1', expected {URL}; a port from 1 to 65535, an "
    "IPv6 address in brackets",
    "base_url = 'https://::1/v1'": f"base_url: found 'https://::1/v1', expected {URL}; a port from 1 to 65535, an "
    "IPv6 address in brackets",
    "base_url = 'https://bob:hunter2@x/v1'": "base_url: found a URL that holds credentials (redacted), expected "
    f"{URL}; clients send their own credentials",
    "base_url = 'https://bob:hun/ter2@x/v1'": "base_url: found a URL that holds credentials (redacted), expected "
    f"{URL}; clients send their own credentials",
    "base_url = 'https://x/v1?key=hunter2'": "base_url: found 'https://x/v1' with a query or fragment (redacted), "
    f"expected {URL}; no query, no fragment",
    "base_url = 'https://x/#hunter2'": "base_url: found 'https://x/' with a query or fragment (redacted), "
    f"expected {URL}; no query, no fragment",
    "base_url = 'sk-hunter2'": f"base_url: found what may hold a credential (redacted), expected {URL}",
    "base_url = 5": f"base_url: found 5, expected {URL}",
    "hosts = 'x'": "hosts: found 'x', expected an array",
    "hosts = ['x:80']": f"hosts[0]: found 'x:80', expected {HOST}",
    "hosts = ['*.x']": f"hosts[0]: found '*.x', expected {HOST}",
    "hosts = ['é.x']": f"hosts[0]: found 'é.x', expected {HOST}",
    "hosts = ['x.']": f"hosts[0]: found 'x.', expected {HOST}",
    "hosts = ['']": f"hosts[0]: found '', expected {HOST}",
    "hosts = ['[::g]']": f"hosts[0]: found '[::g]', expected {HOST}",
    "hosts = ['x', 'X']": "hosts[1]: found 'x' a second time, expected each only once",
    "default = 'yes'": "default: found 'yes', expected true or false",
    "default = false": "default: found false, expected true, or no such key: the only upstream is the default",
    "ca_file = 5": f"ca_file: found 5, expected {PATH}",
    "max_connections = 0": "max_connections: found 0, expected a whole number of connections from 1 to 1048576",
    "max_connections = 1.5": "max_connections: found 1.5, expected a whole number of connections from 1 to 1048576",
    "max_connections = true": "max_connections: found true, expected a whole number of connections from 1 to 1048576",
    "idle = 0": f"idle: found 0, expected {SECONDS}",
    "retry_post = 0": "retry_post: found 0, expected true or false",
    "inject_usage = 0": "inject_usage: found 0, expected true or false",
}

SECOND_VALUES = {
    "true": "true",
    "'5'": "'5'",
    "0": "0",
    "-0.0": "-0.0",
    "-1": "-1",
    "nan": "nan",
    "inf": "inf",
    "1e9": "1000000000.0",
    "[]": "an array",
    f"0x{'f' * 9000}": "a very large number",
}


@pytest.mark.parametrize(("text", "line"), SERVER_VALUES.items(), ids=range(len(SERVER_VALUES)))
def test_a_server_value_that_is_not_what_its_key_takes_is_a_fault(text: str, line: str | list[str]) -> None:
    assert lines_of(server(text)) == [f"[server] {each}" for each in ([line] if isinstance(line, str) else line)]


@pytest.mark.parametrize(("text", "line"), OTHER_VALUES.items(), ids=range(len(OTHER_VALUES)))
def test_a_value_of_another_table_that_is_not_what_its_key_takes_is_a_fault(text: str, line: str) -> None:
    assert lines_of(text) == [line]


SPELLINGS = [
    "50.00usd/month", "1usd/day", "0.000001usd/total", "0usd/day", "0.0usd/day", "1usd/year", "1.usd/day", "-1usd/day",
    "1e3usd/day", "1eur/day", "1 usd/day", "1usd/day\n", "999999999999usd/day", "1000000000000usd/day", ".5usd/day",
    "0.0000001usd/day", "١usd/day", "",
]  # fmt: skip


@pytest.mark.parametrize("text", SPELLINGS)
def test_a_budget_is_written_as_in_the_keystore(text: str) -> None:
    try:
        ATTRIBUTES["budget"].read(text)
    except ParseError:
        if text:  # which here means that there is none
            assert len(lines_of(f"[limits]\nbudget = {text!r}")) == 1
    else:
        assert parsed(f"[limits]\nbudget = {text!r}").limits.budget == text


@pytest.mark.parametrize(
    "text", ["gpt-4o*", "*", "ft:gpt-4o:acme::1", "a/b@c~d=e+f", "a?", "[ab]", "a,b", "é", "a" * 256, "a" * 257]
)
def test_a_price_names_models_as_the_keystore_does(text: str) -> None:
    document = f"[prices.{text!r}]\ninput = 1"
    try:
        ATTRIBUTES["models"].read(text)
    except ParseError:
        assert len(lines_of(document)) == 1
    else:
        if "," not in text:
            assert parsed(document).prices[0].model == text


@pytest.mark.parametrize("key", ["limits.rpm", "limits.tpm", "limits.max_parallel"])
def test_a_limit_has_the_bounds_that_it_has_in_the_keystore(key: str) -> None:
    name = key.partition(".")[2]
    most = ATTRIBUTES[name]
    for number in (1, 10**6, 10**6 + 1, 10**15 - 1, 10**15):
        try:
            most.read(str(number))
        except ParseError:
            assert len(lines_of(f"{key} = {number}")) == 1
        else:
            assert getattr(parsed(f"{key} = {number}").limits, name) == number


SECRET_KEYS = ["[admin]\ntoken_file", "[upstreams.openai]\napi_key_file"]


@pytest.mark.parametrize("key", SECRET_KEYS)
@pytest.mark.parametrize("mode", [0o604, 0o602, 0o644, 0o666])
def test_a_file_with_a_secret_that_everybody_may_read_or_write_is_a_fault(
    secret_file: Path, key: str, mode: int
) -> None:
    secret_file.chmod(mode)
    assert lines_of(f"{key} = '{secret_file}'") == [
        f"{key.replace(chr(10), ' ')}: found '{secret_file}' (mode {mode:04o}), which every user of this machine may "
        f"read or write, expected a file for its owner and group alone: chmod o= '{secret_file}'"
    ]


@pytest.mark.parametrize("mode", [0o400, 0o440, 0o600, 0o640, 0o660, 0o641])
def test_a_file_with_a_secret_may_be_its_owners_and_its_groups(secret_file: Path, mode: int) -> None:
    secret_file.chmod(mode)
    assert parsed(f"[admin]\ntoken_file = '{secret_file}'").admin.token_file == secret_file


@pytest.mark.parametrize("key", SECRET_KEYS)
def test_a_file_with_a_secret_is_there_and_holds_something(tmp_path: Path, key: str) -> None:
    where = key.replace("\n", " ")
    (tmp_path / "empty").touch(mode=0o600)
    os.mkfifo(tmp_path / "fifo", 0o600)
    alone = "a file with the secret and nothing else"
    for name, found in {
        "nowhere": (
            "which cannot be read (No such file or directory)",
            "a file with the secret that this user can read",
        ),
        "empty": ("which is empty", alone),
        "fifo": ("which is a FIFO, no regular file", alone),
        ".": ("which is a directory, no regular file", alone),
    }.items():
        path = tmp_path / name
        assert lines_of(f"{key} = '{path}'") == [f"{where}: found '{path}', {found[0]}, expected {found[1]}"]


def test_a_file_with_a_secret_that_this_user_may_not_read_is_a_fault() -> None:
    with public_folder() as folder:
        path = folder / "secret"
        path.write_text("canary")
        path.chmod(0)
        imports = "from flowstack.config import ConfigError, parse"
        body = """
            try:
                parse(f"[admin]\\ntoken_file = '{path}'".encode(), "f.toml")
            except ConfigError as error:
                print(error)
        """
        if os.geteuid() == 0:  # root may read everything
            told = told_as_nobody(imports, body, path).rstrip("\n")
        else:
            (told,) = lines_of(f"[admin]\ntoken_file = '{path}'")
    assert told.endswith(
        f"found '{path}', which cannot be read (Permission denied), expected a file with the secret that this user can "
        "read"
    )


@pytest.mark.parametrize(("text", "line"), UPSTREAM_VALUES.items(), ids=range(len(UPSTREAM_VALUES)))
def test_an_upstream_value_that_is_not_what_its_key_takes_is_a_fault(text: str, line: str) -> None:
    expected = [f"[upstreams.openai] {line}"]
    assert lines_of(openai(text)) == expected
    assert "hunter2" not in expected[0]


@pytest.mark.parametrize("key", [key for key in settings_of(Timeouts) if key != "tcp_keepalive"])
def test_every_timeout_is_a_finite_number_above_nothing(key: str) -> None:
    none = key == "pre_drain"
    for value, found in SECOND_VALUES.items():
        if none and found in ("0", "-0.0"):
            assert getattr(parsed(f"[timeouts]\n{key} = {value}").timeouts, key) == 0.0
            continue
        expected = SECONDS.replace("above 0, at most", "from 0 to") if none else SECONDS
        assert lines_of(f"[timeouts]\n{key} = {value}") == [f"[timeouts] {key}: found {found}, expected {expected}"]
    assert getattr(parsed(f"[timeouts]\n{key} = 7").timeouts, key) == 7.0


def test_tcp_keepalive_is_what_the_kernel_takes_and_0_means_never() -> None:
    for value in ("-1", "32768", "1.5", "true", "''"):
        [line] = lines_of(f"[timeouts]\ntcp_keepalive = {value}")
        assert line.endswith("expected a whole number of seconds from 0 to 32767")
    for seconds in (0, 1, 32767):
        assert parsed(f"[timeouts]\ntcp_keepalive = {seconds}").timeouts.tcp_keepalive == seconds


@pytest.mark.parametrize(
    ("value", "found"), [("''", "''"), ("5", "5"), ('"a\\u0000"', "'a\\x00'")], ids=["empty", "number", "NUL"]
)
def test_a_request_log_is_a_word_or_a_path(value: str, found: str) -> None:
    expected = "'-' for standard output, 'none', or the path of a file"
    assert lines_of(f"[log]\nrequests = {value}") == [f"[log] requests: found {found}, expected {expected}"]


@pytest.mark.parametrize(
    ("written", "taken"),
    [
        ("https://api.openai.com/v1/", "https://api.openai.com/v1"),
        ("https://api.openai.com", "https://api.openai.com"),
        ("https://api.openai.com/", "https://api.openai.com"),
        ("https://API.openai.com:443/V1", "https://api.openai.com:443/V1"),
        ("http://127.0.0.1:9000/v1", "http://127.0.0.1:9000/v1"),
        ("http://[::1]/v1", "http://[::1]/v1"),
    ],
)
def test_a_base_url_has_no_trailing_slash_and_a_lower_case_host(written: str, taken: str) -> None:
    assert parsed(openai(f"base_url = '{written}'")).upstreams[0].base_url == taken


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("nowhere.pem", "'{}/nowhere.pem', which cannot be read (No such file or directory)"),
        ("empty.pem", "no PEM certificate in '{}/empty.pem'"),
        ("key.pem", "no PEM certificate in '{}/key.pem'"),
        ("revocations.pem", "no PEM certificate in '{}/revocations.pem'"),
    ],
)
def test_a_ca_file_holds_a_certificate(tls: Path, name: str, found: str) -> None:
    assert lines_of(openai(f"ca_file = '{tls}/{name}'")) == [
        f"[upstreams.openai] ca_file: found {found.format(tls)}, expected a PEM file with at least one certificate"
    ]


def test_a_ca_file_that_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (line,) = lines_of(openai(f"ca_file = '{tmp_path}/fifo'"))
    assert "which cannot be read (a FIFO, no regular file)" in line


@pytest.mark.parametrize("canary", ["sk-canary", "fsk-canary", "Bearer canary", "https://me:canary@x/v1", "//canary@x"])
@pytest.mark.parametrize("value", ["'{}'", "['{}']", "[{{path = '{}'}}]", "{{'{}' = 1}}"])
def test_what_looks_like_a_credential_is_never_shown(canary: str, value: str) -> None:
    written = value.format(canary)
    for table, cls in TABLES.items():
        head = {"upstreams": "upstreams.openai", "prices": "prices.x"}.get(table, table)
        for key in [*settings_of(cls), f"'{canary}'"]:
            try:
                parsed(f"[{head}]\n{key} = {written}")
            except ConfigError as error:
                assert "canary" not in str(error)
            else:
                assert key in ("keys", "state", "requests", "hosts", "models", "socket")  # names that may be any


def test_a_secret_that_stands_where_its_files_path_belongs_is_never_shown() -> None:
    for key in SECRET_KEYS:
        (line,) = lines_of(f"{key} = 'sk-canary'")
        assert "canary" not in line

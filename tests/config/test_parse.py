from __future__ import annotations

import os
import pickle
import re
from pathlib import Path
from socket import gethostname

import pytest
from attrs import fields
from hypothesis import given
from hypothesis import strategies as st

from flowstack.config import (
    Admin,
    ConfigError,
    Estimates,
    Ledger,
    Limits,
    Log,
    Prefix,
    Price,
    Reconcile,
    Server,
    Settings,
    Timeouts,
    Upstream,
    UpstreamLimits,
    load,
    node_of,
    parse,
)
from flowstack.config.parse import FLAGS
from flowstack.config.settings import OF_UPSTREAMS, TABLES
from flowstack.config.values import settings_of
from tests.config.faults import PATH, SECONDS, URL, WORKERS, lines_of, openai, parsed, server
from tests.rights import public_folder, told_as_nobody

TABLE_NAMES = (
    "[server], [timeouts], [upstreams.NAME], [log], [ledger], [admin], [limits], [estimates], [reconcile], "
    "[shared] or [prices.'MODEL']"
)
SERVER_KEYS = ", ".join(settings_of(Server))
TIMEOUT_KEYS = ", ".join(settings_of(Timeouts))
UPSTREAM_KEYS = ", ".join(settings_of(Upstream))

UNQUOTED = (
    "{0}: found the name '{1}' without quotes, of which TOML makes a table within another, expected [prices.'{1}'], "
    "with quotes"
)

MARK = "found a {} byte order mark at its beginning, expected TOML in UTF-8 without one; save it as UTF-8 without BOM"

SYNTAX = {
    "[server]\nlisten = [": "f.toml:2:11: found a fault of syntax (Invalid value), expected TOML 1.0",
    "a = 'é' b": "f.toml:1:9: found a fault of syntax (Expected newline or end of document after a statement), "
    "expected TOML 1.0",
    b"# \xc3\xa9\n# \xe9": "f.toml:2:3: found the byte 0xe9, expected TOML in UTF-8",
    "[a]\n[a]": "f.toml:2:3: found a fault of syntax (Cannot declare ('a',) twice), expected TOML 1.0",
    "['sk-a']\n['sk-a']": "f.toml:2:8: found a fault of syntax (what may hold a credential (redacted)), expected "
    "TOML 1.0",
    b"\xef\xbb\xbf[server]": MARK.format("UTF-8"),
    "\ufeff[server]".encode("utf-16-le"): MARK.format("UTF-16"),
    "a = " + "[" * 100_000: "found arrays or tables nested too deeply, expected the tables of Flowstack",
    "a = " + "9" * 5000: "found a number that is too long, expected TOML 1.0",
}

NAMES = {
    "[sever]": f"[sever]: found an unknown table, expected {TABLE_NAMES} (did you mean [server]?)",
    "[x]": f"[x]: found an unknown table, expected {TABLE_NAMES}",
    "drain = 5": "drain: found a key outside any table, expected it in [timeouts]",
    "x = 5": f"x: found a key outside any table, expected {TABLE_NAMES}",
    "server = 5": "[server]: found 5, expected a table",
    "[[log]]": "[log]: found an array, expected a table",
    "upstreams = 'x'": "[upstreams]: found 'x', expected tables, such as [upstreams.openai]",
    "upstreams.openai = 1": "[upstreams.openai]: found 1, expected a table",
    server("listn = []"): f"[server] listn: found an unknown key, expected one of {SERVER_KEYS} (did you mean listen?)",
    "[timeouts]\nx = 1": f"[timeouts] x: found an unknown key, expected one of {TIMEOUT_KEYS}",
    openai(
        "api_key = 'sk-secret'"
    ): f"[upstreams.openai] api_key: found an unknown key, expected one of {UPSTREAM_KEYS} (did you mean "
    "api_key_file?)",
    "[log]\nfile = 'x'": "[log] file: found an unknown key, expected one of requests, format",
    "[admin]\ntoken = 'x'": "[admin] token: found an unknown key, expected one of token_file, hosts, "
    "manage_token_file, manage_keys (did you mean token_file?)",
    openai("limits.rpn = 5"): "[upstreams.openai.limits] rpn: found an unknown key, expected one of rpm, tpm, "
    "max_parallel, budget (did you mean rpm?)",
    openai("limits = 5"): "[upstreams.openai] limits: found 5, expected a table",
    "rpm = 5": "rpm: found a key outside any table, expected it in [limits]",
    "idle = 5": "idle: found a key outside any table, expected it in [upstreams.NAME]",
    "prices = 5": "[prices]: found 5, expected tables, such as [prices.'my-model*']",
    "[prices]\ninput = 5": "[prices.input]: found 5, expected a table",
    "[prices.x]\ninput = 5\ninptu = 5": "[prices.x] inptu: found an unknown key, expected one of input, cached_input, "
    "output, audio_input, cached_audio_input, audio_output, image_input, cached_image_input, image_output, "
    "cache_write, cache_write_hour, audio_minute, web_search_call, file_search_call, container (did you mean input?)",
    "[prices.gpt-4.1]\ninput = 5": UNQUOTED.format("[prices.gpt-4] 1", "gpt-4.1"),
    "prices.gpt-4.1.2-x.input = 5": UNQUOTED.format("[prices.'gpt-4.1'] 2-x", "gpt-4.1.2-x"),
    "[prices.gpt-4]\ninput = 5\n[prices.gpt-4.1]\ninput = 5": UNQUOTED.format("[prices.gpt-4] 1", "gpt-4.1"),
    "[prices.'a b']\ninput = 5": "[prices.'a b']: found 'a b', expected a model's name, or a pattern such "
    "as gpt-4o*, without spaces",
    '"a\\nb" = 1': f"'a\\nb': found a key outside any table, expected {TABLE_NAMES}",
    '"sk-secret" = 1': f"what may hold a credential (redacted): found a key outside any table, expected {TABLE_NAMES}",
    "[upstreams.'a b']\nbase_url = 'http://x'": "[upstreams.'a b']: found the name 'a b', expected at most 64 letters, "
    "digits, - and _, the first a letter or digit",
}


@pytest.mark.parametrize(("text", "line"), SYNTAX.items(), ids=range(len(SYNTAX)))
def test_a_fault_of_syntax_is_told_with_its_place(text: str | bytes, line: str) -> None:
    assert lines_of(text) == [line]


@pytest.mark.parametrize(("text", "line"), NAMES.items(), ids=range(len(NAMES)))
def test_an_unknown_table_or_key_is_a_fault_with_a_hint(text: str, line: str) -> None:
    assert lines_of(text) == [line]


def test_nothing_given_means_the_defaults() -> None:
    assert parse(b"", "f.toml") == Settings()
    assert parsed("".join(f"[{table}]\n" for table in TABLES)) == Settings()


def test_every_field_is_a_setting_with_a_reader_and_a_sentence() -> None:
    assert {field.name for field in fields(Settings)} == TABLES.keys()
    inner = {table.partition(".")[0] for table in OF_UPSTREAMS}
    for cls in (*TABLES.values(), *OF_UPSTREAMS.values()):
        assert sorted(settings_of(cls)) == sorted({field.name for field in fields(cls)} - {"name", "model"})
        assert all(one.text.endswith(".") for one in settings_of(cls).values() if one.name not in inner)


def test_a_whole_configuration_is_taken_as_it_is_written(tls: Path, secret_file: Path) -> None:
    settings = parsed(
        f"""
        [server]
        listen = ["tcp:9000", 'tcp6:9001:interface=\\:\\:1', "systemd:domain=INET:name=web"]
        keys = "secret/keys"
        state = "/var/lib/flowstack"
        workers = "auto"
        admin = "unix:/run/admin.sock"
        prefixes = ["/v1/", "/", {{path = "/beta/", base_path = "/v1beta/openai/"}}, {{path = "/c/", base_path = ""}}]
        max_request_bytes = 1
        max_head_bytes = 1024
        cors_origins = ["*", "https://app.example", "http://localhost:3000", "http://[::1]:8080"]
        forwarded = "append"
        remove_headers = ["X-Team", "x_secret-*"]
        server_timing = true
        trusted_proxies = ["10.0.0.0/8", "192.0.2.7", "2001:DB8::/32"]
        proxy_protocol = true
        docs_url = "https://docs.example.com/flowstack/"
        [timeouts]
        connect = 0.5
        [upstreams.openai]
        hosts = ["OpenAI.Flowstack.example", "[::1]", "10.0.0.1"]
        default = true
        [upstreams.in-house]
        base_url = "HTTP://[fe80::1]:8000/a%20b/v1/"
        ca_file = "{tls}/authority.pem"
        max_connections = 7
        idle = 1.5
        retry_post = true
        api_key_file = "{secret_file}"
        api_key_header = "X-API-Key"
        inject_usage = false
        [upstreams.in-house.limits]
        rpm = 5
        tpm = ""
        budget = "0.000001usd/total"
        [log]
        requests = "requests.log"
        format = "text"
        [ledger]
        on_ledger_failure = "refuse"
        queue_bytes = 0
        fsync = "row"
        max_file_bytes = 4096
        retention_days = 90
        index = false
        inject_usage = true
        [admin]
        token_file = "{secret_file}"
        hosts = ["Admin.example", "[0::1]"]
        [limits]
        tpm = 200000
        max_parallel = 20
        budget_status = 402
        [estimates]
        output_tokens = 1
        price = 3
        [reconcile]
        enabled = true
        every = 0.5
        [prices."my-model*"]
        input = 2.5
        cached_input = 1.25
        output = 10
        [prices."vendor/x:1@2"]
        input = 0
        audio_input = 4
        audio_output = 5
        cache_write = 6
        [prices."by-the-minute"]
        audio_minute = 0.006
        web_search_call = 0.01
        """
    )
    assert settings == Settings(
        Server(
            listen=("tcp:9000", "tcp6:9001:interface=\\:\\:1", "systemd:domain=INET:name=web"),
            keys=Path("secret/keys"),
            state=Path("/var/lib/flowstack"),
            workers=0,
            admin="unix:/run/admin.sock",
            prefixes=(Prefix("/v1/"), Prefix("/"), Prefix("/beta/", "/v1beta/openai/"), Prefix("/c/")),
            max_request_bytes=1,
            max_head_bytes=1024,
            cors_origins=("*", "https://app.example", "http://localhost:3000", "http://[::1]:8080"),
            forwarded="append",
            remove_headers=("x-team", "x-secret-*"),
            server_timing=True,
            trusted_proxies=("10.0.0.0/8", "192.0.2.7/32", "2001:db8::/32"),
            proxy_protocol=True,
            docs_url="https://docs.example.com/flowstack",
        ),
        Timeouts(connect=0.5),
        (
            Upstream(hosts=("openai.flowstack.example", "[::1]", "10.0.0.1")),
            Upstream(
                name="in-house",
                base_url="http://[fe80::1]:8000/a%20b/v1",
                default=False,
                ca_file=tls / "authority.pem",
                max_connections=7,
                idle=1.5,
                retry_post=True,
                api_key_file=secret_file,
                api_key_header="X-API-Key",
                inject_usage=False,
                limits=UpstreamLimits(rpm=5, budget="0.000001usd/total"),
            ),
        ),
        Log("requests.log", "text"),
        Ledger("refuse", 0, "row", 4096, 90, False, True),
        Admin(secret_file, ("admin.example", "[::1]")),
        Limits(tpm=200000, max_parallel=20, budget_status=402),
        Estimates(1, 3.0),
        (
            Price("my-model*", input=2.5, cached_input=1.25, output=10.0),
            Price("vendor/x:1@2", input=0.0, audio_input=4.0, audio_output=5.0, cache_write=6.0),
            Price("by-the-minute", audio_minute=0.006, web_search_call=0.01),
        ),
        Reconcile(True, 0.5),
    )


def test_asking_about_open_work_needs_a_provider_key_and_a_state_directory(secret_file: Path) -> None:
    key, state = f"[upstreams.openai]\napi_key_file = '{secret_file}'\n", "[server]\nstate = 'state'\n"
    on = "[reconcile]\nenabled = true\n"
    no_key = (
        "[reconcile] enabled: found true, and no upstream with an api_key_file, expected one in each upstream that is "
        "to be asked, or false"
    )
    no_state = (
        "[reconcile] enabled: found true without a state directory, expected it with [server] state, where open work "
        "is kept, or false"
    )
    assert lines_of(on) == [no_state, no_key]
    assert lines_of(on + key) == [no_state]
    assert lines_of(on + state) == [no_key]
    assert parsed(on + state + key).reconcile == Reconcile(True, 60.0)
    assert lines_of(on + state + "[upstreams.openai]\napi_key_file = 7") != [no_key]
    assert not parsed("").reconcile.enabled


def test_changing_keys_by_the_page_needs_a_token_of_its_own_and_a_state_directory(secret_file: Path) -> None:
    other = secret_file.with_name("other")
    other.write_bytes(b"another-secret-0123456789")
    other.chmod(0o600)
    state, token = "[server]\nstate = 'state'\n", f"[admin]\nmanage_token_file = '{secret_file}'\n"
    no_token = (
        "[admin] manage_keys: found true without manage_token_file, expected it with the file of a token for those who "
        "may, or false"
    )
    no_state = (
        "[admin] manage_keys: found true without a state directory, expected it with [server] state, where each change "
        "is written down, or false"
    )
    assert lines_of("[admin]\nmanage_keys = true") == [no_token, no_state]
    assert lines_of(token + "manage_keys = true") == [no_state]
    assert lines_of(state + "[admin]\nmanage_keys = true") == [no_token]
    assert parsed(state + token + f"manage_keys = true\ntoken_file = '{other}'").admin.manage_keys
    assert lines_of(token + f"token_file = '{secret_file}'") == [
        "[admin] manage_token_file: found the file of token_file, expected another: who may look may not change"
    ]


def test_settings_reach_workers_by_pickle(secret_file: Path) -> None:
    settings = parsed(
        f"[admin]\ntoken_file = '{secret_file}'\n[upstreams.openai.limits]\nrpm = 1\n[prices.x]\ninput = 1"
    )
    assert pickle.loads(pickle.dumps(settings)) == settings


def test_an_upstream_that_is_not_openai_states_its_base_url() -> None:
    assert lines_of("[upstreams.anthropic]") == [
        "[upstreams.anthropic] base_url: found nothing, expected the provider's base URL, such as "
        "https://api.openai.com/v1"
    ]


def test_an_only_upstream_is_the_default_without_saying_so() -> None:
    assert parsed("[upstreams.a]\nbase_url = 'http://a'").upstreams == (
        Upstream(name="a", base_url="http://a", default=True),
    )


def test_exactly_one_of_several_upstreams_is_the_default() -> None:
    two = "[upstreams.a]\nbase_url = 'http://a'\n{}\n[upstreams.b]\nbase_url = 'http://b'\n{}"
    assert [upstream.default for upstream in parsed(two.format("", "default = true")).upstreams] == [False, True]
    assert lines_of(two.format("", "")) == [
        "[upstreams]: found default = true in none of them, expected it in exactly one of a, b"
    ]
    assert lines_of(two.format("default = true", "default = true")) == [
        "[upstreams]: found default = true in a and b, expected it in exactly one of a, b"
    ]


def test_a_host_selects_one_upstream_only() -> None:
    text = """
    [upstreams.a]
    base_url = "http://a"
    hosts = ["x.example"]
    default = true
    [upstreams.b]
    base_url = "http://b"
    hosts = ["X.Example"]
    """
    assert lines_of(text) == [
        "[upstreams.b] hosts: found 'x.example', which selects a, expected a host in one upstream only"
    ]


def test_all_faults_are_told_at_once_in_the_order_of_the_file() -> None:
    text = """
    [sever]
    [server]
    listen = ["tcp", "tcp:1", "x:1"]
    workers = -1
    prefixes = ["a", {}, {path = "b", base_path = 1, c = 2}]
    [timeouts]
    connect = 0
    queue = "x"
    [upstreams.a]
    hosts = ["a", "b:1", "*"]
    [upstreams.b]
    base_url = "x"
    idle = 0
    [log]
    requests = 1
    [upstreams.b.limits]
    rpm = 0
    [prices."a b"]
    output = -1
    [ledger]
    fsync = "always"
    """
    places = [line.partition(": found")[0] for line in lines_of(text, admin="nothing", keys="")]
    assert places == [
        "[sever]",
        "[server] listen[0]",
        "[server] listen[2]",
        "[server] workers",
        "[server] prefixes[0]",
        "[server] prefixes[1].path",
        "[server] prefixes[2].path",
        "[server] prefixes[2].base_path",
        "[server] prefixes[2].c",
        "[timeouts] connect",
        "[timeouts] queue",
        "[upstreams]",
        "[upstreams.a] hosts[1]",
        "[upstreams.a] hosts[2]",
        "[upstreams.a] base_url",
        "[upstreams.b] base_url",
        "[upstreams.b] idle",
        "[upstreams.b.limits] rpm",
        "[log] requests",
        "[prices.'a b']",
        "[prices.'a b'] output",
        "[prices.'a b'] input",
        "[ledger] fsync",
        "--admin",
        "--keys",
    ]


def test_a_fault_knows_its_place_and_a_config_error_its_faults() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(b"[timeouts]\nconnect = -1", "dir/f.toml", {"workers": "many"})
    places = [(fault.file, fault.table, fault.key) for fault in caught.value.faults]
    assert places == [("dir/f.toml", "timeouts", "connect"), ("", "", "--workers")]
    assert str(caught.value) == (
        f"dir/f.toml: [timeouts] connect: found -1, expected {SECONDS}\n--workers: found 'many', expected {WORKERS}"
    )


def test_faults_of_flags_are_told_beside_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "nowhere", {"workers": -1})
    assert [fault.key for fault in caught.value.faults] == ["", "--workers"]


def test_faults_of_flags_are_told_beside_a_fault_of_syntax() -> None:
    places = [line.partition(":")[0] for line in lines_of("[server", listen=["nothing"])]
    assert places == ["f.toml", "--listen"]


def test_relative_paths_start_at_the_files_directory_and_those_of_flags_at_the_working_directory() -> None:
    text = b"[server]\nstate = 'state'\n[log]\nrequests = 'log/requests'"
    settings = parse(text, "etc/flowstack.toml", {"keys": "mine/keys"})
    assert settings.server.state == Path("etc/state")
    assert settings.log.requests == "etc/log/requests"
    assert settings.server.keys == Path("mine/keys")
    assert parse(text, "etc/flowstack.toml").server.keys == Path("etc/keys")


def test_loaded_paths_are_absolute_so_that_a_change_of_directory_moves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/f.toml").write_text("[server]\nstate = 'state'\n[log]\nrequests = 'requests'")
    monkeypatch.chdir(tmp_path)
    settings = load(Path("etc/f.toml"), {"keys": Path("keys")})
    assert settings.server.state == tmp_path / "etc/state"
    assert settings.log.requests == str(tmp_path / "etc/requests")
    assert settings.server.keys == tmp_path / "keys"
    assert load(Path("etc/f.toml")).server.keys == tmp_path / "etc/keys"


def test_no_file_means_the_defaults_with_the_keystore_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(None) == Settings(Server(keys=tmp_path / "keys"))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("none.toml", "No such file or directory"),
        (".", "a directory, no regular file"),
        ("fifo", "a FIFO, no regular file"),
        ("/dev/zero", "a device, no regular file"),
        ("huge", "more than 16777216 bytes"),
        ("a\0", "not a path"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_fault(tmp_path: Path, name: str, reason: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    with open(tmp_path / "huge", "wb") as file:
        file.truncate(1 << 40)
    path = tmp_path / name
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value) == (
        f"{path}: found a file that cannot be read ({reason}), expected a TOML file that this user can read"
    )


def test_a_file_that_this_user_may_not_read_is_a_fault() -> None:
    with public_folder() as folder:
        path = folder / "f.toml"
        path.touch(mode=0)
        if os.geteuid() == 0:  # root may read everything
            imports = "from flowstack.config import ConfigError, load"
            body = """
                try:
                    load(path)
                except ConfigError as error:
                    print(error)
            """
            told = told_as_nobody(imports, body, path).rstrip("\n")
        else:
            with pytest.raises(ConfigError) as caught:
                load(path)
            told = str(caught.value)
    assert told == (
        f"{path}: found a file that cannot be read (Permission denied), expected a TOML file that this user can read"
    )


def test_flags_override_the_file() -> None:
    text = """
    [server]
    listen = ["tcp:1"]
    keys = "a"
    state = "b"
    workers = 3
    admin = "tcp:2"
    [upstreams.a]
    base_url = "http://a"
    [upstreams.b]
    base_url = "http://b"
    default = true
    """
    settings = parsed(
        text, listen=["tcp:3", "tcp:4"], keys="c", state=Path("d"), workers="5", admin="tcp:6", upstream="http://e/v1/"
    )
    assert settings.server == Server(
        listen=("tcp:3", "tcp:4"), keys=Path("c"), state=Path("d"), workers=5, admin="tcp:6"
    )
    assert [(upstream.name, upstream.base_url) for upstream in settings.upstreams] == [
        ("a", "http://a"),
        ("b", "http://e/v1"),
    ]
    assert parsed(text, admin="").server.admin is None


def test_a_flag_that_was_not_given_overrides_nothing() -> None:
    text = "[server]\nlisten = ['tcp:1']\nworkers = 3"
    assert parsed(text, listen=[], workers=None, upstream=None, keys=None) == parsed(text)


def test_what_a_flag_replaces_is_not_read() -> None:
    text = "[server]\nlisten = ['nothing']\nkeys = 5\n[upstreams.a]"
    settings = parsed(text, listen=("tcp:1",), keys="k", upstream="http://a")
    assert settings.upstreams == (Upstream(name="a", base_url="http://a"),)


FLAG_FAULTS = {
    "listen": (
        ["tcp:1", "tcp:x"],
        "found 'tcp:x' with a word where a number belongs, expected tcp:PORT[:interface=ADDRESS]",
    ),
    "upstream": (
        "https://bob:hunter2@x",
        f"found a URL that holds credentials (redacted), expected {URL}; clients send their own credentials",
    ),
    "keys": ("", f"found '', expected {PATH}"),
    "state": ("a\0", f"found 'a\\x00', expected {PATH}"),
    "workers": ("x", f"found 'x', expected {WORKERS}"),
    "admin": (
        "tcp:8080",
        "found 'tcp:8080' beside 'tcp:8080:interface=127.0.0.1', expected another address for each listener",
    ),
}


@pytest.mark.parametrize("flag", FLAGS)
def test_a_flags_fault_is_told_under_its_name(flag: str) -> None:
    value, told = FLAG_FAULTS[flag]
    assert lines_of("", **{flag: value}) == [f"--{flag}: {told}"]


def test_an_upstream_flag_is_checked_where_no_default_is_known() -> None:
    text = "[upstreams.a]\nbase_url = 'http://a'\n[upstreams.b]\nbase_url = 'http://b'"
    places = [line.partition(": found")[0] for line in lines_of(text, upstream="x")]
    assert places == ["[upstreams]", "--upstream"]


def test_a_rejected_listen_does_not_accuse_the_admin_listener() -> None:
    assert len(lines_of(server("listen = ['tcp']\nadmin = 'tcp:8080'"))) == 1


def test_a_proxy_s_header_before_tls_is_not_looked_for_behind_it(tls: Path) -> None:
    endpoint = f"ssl:8443:privateKey={tls}/key.pem:certKey={tls}/cert.pem"
    told = lines_of(server(f"listen = ['tcp:8080', '{endpoint}']\nproxy_protocol = true"))
    assert len(told) == 1
    assert told[0].startswith("[server] listen[1]: ")
    assert "comes before TLS" in told[0]


def test_an_override_that_is_no_flag_is_the_callers_mistake() -> None:
    with pytest.raises(TypeError, match="no such override: port"):
        parse(b"", "f.toml", {"port": 1})


KNOWN_KEYS = sorted({key for cls in TABLES.values() for key in settings_of(cls)} | {"path", "base_path", "a"})
WORDS = st.sampled_from(
    [
        "''", "'*'", "'auto'", "'none'", "'-'", "'tcp:80'", "'tcp:8080'", "'ssl:1'", "'systemd:a'", "'tls:/'", "'/v1/'",
        "'https://x/v1'", "'https://[::1]:9/'", "'http://['", "'x.example'", "'a:b@c'", "'remove'", "2026-01-01",
        "nan", "-inf", "0", "1", "1e400", "true", "'/dev/null'", "'unix:\\'", '"\\u0000"', "'://'", "'https://x:y'",
        "'10.0.0.0/8'", "'::1'", "'1usd/day'", "'/etc/passwd'", "'serve'", "'row'", "'json'",
    ]
)  # fmt: skip
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).map(
    lambda text: '"' + "".join(f"\\U{ord(character):08x}" for character in text) + '"'
)
NUMBERS = st.integers().map(str) | st.floats().map(repr)
KEYS = st.sampled_from(KNOWN_KEYS) | TEXTS
VALUES = st.recursive(
    WORDS | TEXTS | NUMBERS,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]")
        | st.dictionaries(KEYS, inner, max_size=3).map(
            lambda items: "{" + ", ".join(f"{key} = {value}" for key, value in items.items()) + "}"
        )
    ),
    max_leaves=5,
)
TABLE_HEADS = st.sampled_from([*TABLES, "upstreams.openai", "upstreams.a", "upstreams.a.limits", "prices.x"]) | TEXTS
DOCUMENTS = st.dictionaries(TABLE_HEADS, st.dictionaries(KEYS, VALUES, max_size=4), max_size=4).map(
    lambda tables: "\n".join(
        line
        for head, items in tables.items()
        for line in [f"[{head}]", *(f"{key} = {value}" for key, value in items.items())]
    ).encode()
)


@given(DOCUMENTS | st.binary(max_size=60))
def test_any_document_is_taken_or_told_apart_in_lines(text: bytes) -> None:
    try:
        settings = parse(text, "f.toml")
    except ConfigError as error:
        assert error.faults
        assert str(error).splitlines() == [str(fault) for fault in error.faults]
        assert all(re.match("found .+, expected .+", fault.message) for fault in error.faults)
    else:
        assert isinstance(settings, Settings)
        assert sum(upstream.default for upstream in settings.upstreams) == 1


@given(st.sampled_from([flag for flag in FLAGS if flag != "listen"]), st.text() | st.none() | st.integers())
def test_any_flag_is_taken_or_told_apart_in_a_line(flag: str, value: object) -> None:
    try:
        parse(b"", "f.toml", {flag: value})
    except ConfigError as error:
        assert [str(fault).startswith(f"--{flag}: ") for fault in error.faults] == [True]
        assert len(str(error).splitlines()) == 1


REDIS = "redis:// or rediss://, perhaps a user and @, a host, perhaps a port and /database"
IN_FILE = f"{REDIS}; the password goes into redis_password_file"


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("redis://127.0.0.1", "redis://127.0.0.1:6379/0"),
        ("rediss://flowstack@redis.internal:6380/12", "rediss://flowstack@redis.internal:6380/12"),
        ("redis://[::1]:7000/", "redis://[::1]:7000/0"),
        ("", None),
    ],
)
def test_where_redis_is_has_always_a_port_and_a_database(written: str, read: str | None) -> None:
    assert parsed(f"[shared]\nredis = '{written}'").shared.redis == read


@pytest.mark.parametrize(
    ("written", "found", "expected"),
    [
        ("redis://:hunter2@h", "a URL that holds a password (redacted)", IN_FILE),
        ("redis://user:hunter2@h:1/0", "a URL that holds a password (redacted)", IN_FILE),
        ("redis://us er@h", "a user's name that is none (redacted)", IN_FILE),
        ("http://h", "'http://h'", REDIS),
        ("redis://", "'redis://'", REDIS),
        ("redis://h:0", "'redis://h:0'", REDIS),
        ("redis://h:65536", "'redis://h:65536'", REDIS),
        ("redis://h/db", "'redis://h/db'", REDIS),
        ("redis://h/1/2", "'redis://h/1/2'", REDIS),
        ("redis://h/0?ssl=1", "'redis://h/0?ssl=1'", REDIS),
        ("redis://[::1", "'redis://[::1'", REDIS),
        ("h:6379", "'h:6379'", REDIS),
    ],
)
def test_what_is_no_place_of_redis_is_a_fault_without_its_password(written: str, found: str, expected: str) -> None:
    assert lines_of(f"[shared]\nredis = '{written}'") == [f"[shared] redis: found {found}, expected {expected}"]


@pytest.mark.parametrize("written", ["10.0.0.1", ":1", "h:0", "h:70000", "h:x", "a b:1"])
def test_a_sentinel_is_a_host_and_a_port(written: str) -> None:
    assert parsed("[shared]\nredis = 'redis://main'\nredis_sentinels = ['H:1', '[::1]:2']").shared.redis_sentinels == (
        "h:1", "[::1]:2",
    )  # fmt: skip
    assert lines_of(f"[shared]\nredis = 'redis://main'\nredis_sentinels = ['{written}']") == [
        f"[shared] redis_sentinels[0]: found '{written}', expected a host, a colon and a port, such as 10.0.0.1:26379"
    ]


def test_what_says_how_to_reach_redis_stands_beside_where_it_is(secret_file: Path, tls: Path) -> None:
    authorities = f"redis_ca_file = '{tls}/authority.pem'"
    assert lines_of(f"[shared]\nredis_password_file = '{secret_file}'\nredis_sentinels = ['h:1']\n{authorities}") == [
        f"[shared] {key}: found it without redis, expected redis too, such as redis://127.0.0.1:6379, or no such key"
        for key in ("redis_password_file", "redis_ca_file", "redis_sentinels")
    ]
    assert lines_of(f"[shared]\nredis = 'redis://h'\n{authorities}") == [
        "[shared] redis_ca_file: found it beside redis://, expected rediss://, or no such key: without TLS there is no "
        "certificate to verify"
    ]
    assert lines_of(f"[shared]\nredis = 7\n{authorities}") == [f"[shared] redis: found 7, expected {REDIS}"]


POSTGRES = "postgresql://, a user and @, a host, perhaps a port, and /database"


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("postgres://flowstack@DB.internal/ledger", "postgresql://flowstack@db.internal:5432/ledger"),
        ("postgresql://flowstack@[::1]:5433/flowstack", "postgresql://flowstack@[::1]:5433/flowstack"),
        ("", None),
    ],
)
def test_where_postgresql_is_has_always_a_port(written: str, read: str | None) -> None:
    assert parsed(f"[server]\nstate = 'state'\n[shared]\npostgres = '{written}'").shared.postgres == read


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("postgresql://u:hunter2@h/d", "a URL that holds a password (redacted)"),
        ("postgresql://u@hunter2@h/d", "a URL that holds a password (redacted)"),
        ("postgresql://u@h/d?password=hunter2", "a URL that holds a password (redacted)"),
        ("postgresql://h/d", "'postgresql://h/d'"),
        ("postgresql://u@h", "what may hold a credential (redacted)"),
        ("postgresql://u@h:0/d", "what may hold a credential (redacted)"),
        ("postgresql://u@[::g]/d", "what may hold a credential (redacted)"),
        ("postgresql://u@h/d?sslmode=disable", "what may hold a credential (redacted)"),
        ("mysql://u@h/d", "what may hold a credential (redacted)"),
    ],
)
def test_what_is_no_place_of_postgresql_is_a_fault_without_its_password(written: str, found: str) -> None:
    more = "; the password goes into postgres_password_file" if "password" in found else ""
    assert lines_of(f"[shared]\npostgres = '{written}'") == [
        f"[shared] postgres: found {found}, expected {POSTGRES}{more}"
    ]


def test_what_says_how_to_reach_postgresql_stands_beside_where_it_is(secret_file: Path, tls: Path) -> None:
    authorities = f"postgres_ca_file = '{tls}/authority.pem'"
    some = f"postgres_password_file = '{secret_file}'\npostgres_days = 7\n{authorities}"
    assert lines_of(f"[shared]\n{some}") == [
        f"[shared] {key}: found it without postgres, expected postgres too, such as "
        "postgresql://flowstack@127.0.0.1/flowstack, or no such key"
        for key in ("postgres_password_file", "postgres_ca_file", "postgres_days")
    ]
    assert lines_of(f"[shared]\npostgres = 'postgres://u@h/d'\npostgres_tls = false\n{authorities}") == [
        "[shared] postgres_ca_file: found it beside postgres_tls = false, expected true, or no such key: without TLS "
        "there is no certificate to verify",
        "[shared] postgres: found it without a state directory, expected [server] state too: what is sent is read from "
        "the ledger there",
    ]


@pytest.mark.parametrize("written", ["a b", "-a", "a" * 64, "ü", "a/b"])
def test_a_machines_name_is_one_plain_word(written: str) -> None:
    assert parsed("[server]\nnode = 'East_1.example-2'").server.node == "East_1.example-2"
    assert lines_of(f"[server]\nnode = '{written}'") == [
        f"[server] node: found '{written}', expected at most 63 letters, digits, -, _ and ., the first a letter or "
        "digit"
    ]


@pytest.mark.parametrize(
    ("more", "name"),
    [
        ("", None),
        ("node = 'east-1'", "east-1"),
        ("[shared]\nredis = 'redis://h'", gethostname()[:63]),
        ("node = 'east-1'\n[shared]\nredis = 'redis://h'", "east-1"),
    ],
)
def test_rows_tell_the_machine_where_it_has_a_name_or_shares_something(more: str, name: str | None) -> None:
    assert node_of(parsed(f"[server]\nkeys = 'keys'\n{more}")) == name

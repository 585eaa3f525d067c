from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from flowstack.cli.check import check
from flowstack.config.settings import Shared
from flowstack.prices.table import load_prices
from tests.ledger.conftest import postgres, shared
from tests.rights import NOBODY, needs_root, public_folder, told_as_nobody

KEY = "k7Qm2xW9pLz4  sha256:{:064x}  owner=alice@example.com"


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a keystore of one key, which only its owner may read."""
    monkeypatch.chdir(tmp_path)
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    write_keys(tmp_path / "keys", KEY.format(1))
    return tmp_path


def write_keys(path: Path, *lines: str) -> None:
    path.write_text("".join(f"{line}\n" for line in lines))
    path.chmod(0o600)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(check, arguments, prog_name="flowstack check", catch_exceptions=False)


def test_without_a_file_the_defaults_and_the_keystore_here_are_checked(directory: Path) -> None:
    result = run()
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        "built-in defaults: ok",
        "  listen    tcp:8080:interface=127.0.0.1",
        "  admin     none",
        "  upstream  openai: https://api.openai.com/v1, selected by every other host",
        f"  keys      1 in {directory}/keys",
        "  ledger    none, as [server] state is not set",
        f"  prices    the table of {load_prices().date}",
    ]


def test_what_a_file_sets_up_is_summed_up(directory: Path) -> None:
    (directory / "f.toml").write_text(
        """
        [server]
        listen = ["tcp:1", "tcp:2"]
        admin = "tcp:3:interface=127.0.0.1"
        keys = "other-keys"
        state = "state"
        [admin]
        token_file = "token"
        [limits]
        rpm = 600
        budget = "20.00usd/month"
        [upstreams.a]
        base_url = "https://a.example/v1"
        hosts = ["A.flowstack.example", "a"]
        default = true
        [upstreams.b]
        base_url = "https://b.example"
        hosts = ["b"]
        api_key_file = "token"
        [upstreams.b.limits]
        max_parallel = 2
        [prices."in-house-*"]
        input = 0
        """
    )
    (directory / "token").write_text("canary")
    (directory / "token").chmod(0o600)
    write_keys(
        directory / "other-keys",
        KEY.format(1),
        f"{KEY.format(2).replace('k7', 'k8')} disabled",
        f"{KEY.format(3).replace('k7', 'k9')} expires=2001-01-01",
    )
    result = run("--config", "f.toml")
    assert result.exit_code == 0
    assert re.fullmatch(r"warning: \S+:3: expires: found a time that has passed: the key k9.*\n", result.stderr)
    assert result.stdout.splitlines() == [
        "f.toml: ok",
        "  listen    tcp:1, tcp:2",
        "  admin     tcp:3:interface=127.0.0.1, with a bearer token",
        "  upstream  a: https://a.example/v1, selected by a.flowstack.example, a, every other host",
        f"  upstream  b: https://b.example, selected by b, with the key in {directory}/token",
        f"  keys      3 in {directory}/other-keys, 2 of them disabled or expired",
        f"  ledger    below {directory}/state, which the start makes, with mode 0700",
        "  limits    rpm 600, budget 20.00usd/month, for each key",
        "  limits    max_parallel 2, for each key at b",
        f"  prices    the table of {load_prices().date}, 1 of your own",
    ]


FAILOVER = """
[upstreams.openai]
default = true
hosts = ["openai.flowstack.example"]
first_byte = 20
[upstreams.openai.targets.eu]
base_url = "https://eu.example/v1"
weight = 3
[upstreams.openai.targets.us]
base_url = "https://us.example/v1"
[upstreams.openai.retry]
on = ["connect", 503]
[upstreams.openai.fallback]
to = "azure"
on = [429]
models = {"gpt-4*" = "my-gpt"}
context_length = true
[upstreams.azure]
base_url = "https://azure.example/openai/v1"
api_key_file = "secret"
models = ["my-*"]
"""


def test_it_says_where_a_request_for_a_model_goes(directory: Path) -> None:
    (directory / "f.toml").write_text(FAILOVER)
    (directory / "secret").write_text("canary")
    (directory / "secret").chmod(0o600)
    result = run("--config", "f.toml", "--explain", "gpt-4o")
    assert (result.exit_code, result.stderr) == (0, "")
    summary, _, told = result.stdout.partition("A request for ")
    assert [line for line in summary.splitlines() if "upstream" in line] == [
        "  upstream  openai.targets.eu: https://eu.example/v1, selected by openai.flowstack.example, every other host",
        "  upstream  openai.targets.us: https://us.example/v1, selected by openai.flowstack.example, every other host",
        "  upstream  azure: https://azure.example/openai/v1, selected by the models my-*, what openai cannot "
        f"serve, with the key in {directory}/secret",
    ]
    assert told.splitlines() == [
        "gpt-4o whose Host selects no upstream goes:",
        "  1. to openai (the default upstream): eu https://eu.example/v1 (weight 3), "
        "us https://us.example/v1 (weight 1)",
        "     up to 3 attempts within 60 s, on connect, 503; another target at once",
        "     the first byte of the answer's body within 20 s",
        "  2. to azure, if the last attempt ended with 429, or all targets are down, or the request is too long for "
        "the model: https://azure.example/openai/v1",
        "     asked for my-gpt in place of gpt-4o",
        "     one attempt",
        "  A Host of openai.flowstack.example selects openai before the model does.",
    ]
    assert "  1. to azure (by its models): https://azure.example/openai/v1\n     one attempt\n" in run(
        "--config", "f.toml", "--explain", "my-gpt"
    ).stdout
    assert "canary" not in result.stdout


def test_it_says_by_which_way_each_place_is_reached(directory: Path) -> None:
    (directory / "f.toml").write_text(
        """
        [upstreams.openai]
        proxy = "http://proxy.example:3128"
        proxy_auth_file = "secret"
        [upstreams.openai.targets.far]
        base_url = "https://far.example/v1"
        [upstreams.openai.targets.near]
        base_url = "http://localhost/v1"
        socket = "/run/near.sock"
        """
    )
    (directory / "secret").write_text("user:canary")
    (directory / "secret").chmod(0o600)
    result = run("--config", "f.toml")
    assert [line for line in result.stdout.splitlines() if "upstream" in line] == [
        "  upstream  openai.targets.far: https://far.example/v1, through the proxy http://proxy.example:3128 with the "
        f"credentials in {directory}/secret, selected by every other host",
        "  upstream  openai.targets.near: http://localhost/v1, by the socket /run/near.sock, selected by every other "
        "host",
    ]
    assert "canary" not in result.stdout + result.stderr


def test_a_silent_provider_without_a_limit_on_its_first_byte_is_a_doubt(directory: Path) -> None:
    (directory / "f.toml").write_text("[upstreams.openai.retry]\non = ['timeout']")
    assert run("--config", "f.toml").stderr == (
        "warning: [upstreams.openai] first_byte: none, so that a provider that is silent is given up after "
        "response_head (1200 seconds) only\n"
    )


def test_the_keys_option_takes_the_place_of_the_files_keystore(directory: Path) -> None:
    (directory / "f.toml").write_text("[server]\nkeys = 'nowhere'")
    result = run("--config", "f.toml", "--keys", "keys")
    assert result.exit_code == 0
    assert f"1 in {directory}/keys" in result.stdout


def test_every_fault_is_one_line_on_standard_error_and_the_status_is_1(directory: Path) -> None:
    (directory / "f.toml").write_text("[timeouts]\nconnect = 0\nqueue = 0\n[sever]")
    write_keys(directory / "bad-keys", "nonsense", KEY.format(1), "more nonsense")
    result = run("--config", "f.toml", "--keys", "bad-keys")
    assert (result.exit_code, result.stdout) == (1, "")
    places = [line.partition(": found")[0] for line in result.stderr.splitlines()]
    assert places[:3] == ["f.toml: [timeouts] connect", "f.toml: [timeouts] queue", "f.toml: [sever]"]
    assert [place.partition("keys:")[2][:2] for place in places[3:]] == ["1:", "3:"]


def test_a_file_that_is_not_there_is_a_fault(directory: Path) -> None:
    result = run("--config", "nowhere.toml")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        "nowhere.toml: found a file that cannot be read (No such file or directory), expected a TOML file that this "
        "user can read\n"
    )


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        pytest.param("[server]\nworkers = 'x'", 2, id="default"),
        pytest.param("[server]\nworkers = 'x'\nkeys = 'bad-keys'", 2, id="named"),
        pytest.param("[server]\nkeys = 5", 1, id="itself at fault"),
        pytest.param("[", 1, id="unreadable"),
    ],
)
def test_the_keystores_faults_are_told_beside_the_configurations(directory: Path, text: str, lines: int) -> None:
    write_keys(directory / "keys", "nonsense")
    write_keys(directory / "bad-keys", "nonsense")
    (directory / "f.toml").write_text(text)
    result = run("--config", "f.toml")
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == lines
    assert ("keys:1:" in result.stderr) is (lines == 2)


def test_a_keystore_that_is_not_there_is_a_fault_that_says_how_to_make_it(directory: Path) -> None:
    (directory / "keys").unlink()
    result = run()
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"{directory}/keys: does not exist")
    assert "flowstack keys add" in result.stderr


def test_a_keystore_that_anyone_may_write_is_a_fault_and_one_that_anyone_may_read_a_warning(directory: Path) -> None:
    (directory / "keys").chmod(0o606)
    assert run().exit_code == 1
    (directory / "keys").chmod(0o604)
    result = run()
    assert result.exit_code == 0
    assert result.stderr.startswith("warning: ")
    assert "mode 0604" in result.stderr


def test_what_can_start_but_is_hardly_meant_draws_a_warning(directory: Path) -> None:
    (directory / "f.toml").write_text(
        """
        [server]
        admin = "tcp:3"
        [upstreams.a]
        base_url = "https://a"
        default = true
        [upstreams.b]
        base_url = "https://b"
        """
    )
    write_keys(directory / "keys", f"{KEY.format(1)} upstreams=a,c")
    result = run("--config", "f.toml")
    assert result.exit_code == 0
    assert result.stderr.splitlines() == [
        "warning: [server] admin: tcp:3 is open to every network of this machine, and asks for no password; add "
        "interface=127.0.0.1, or set [admin] token_file",
        "warning: [upstreams.b] hosts: none, and it is not the default, so that nothing selects it",
        f"warning: {directory}/keys: the key k7Qm2xW9pLz4 names the upstream c, which is not configured",
    ]


def test_settings_that_have_no_effect_or_leak_draw_a_warning(directory: Path) -> None:
    (directory / "secret").write_text("canary")
    (directory / "secret").chmod(0o600)
    (directory / "f.toml").write_text(
        """
        [server]
        proxy_protocol = true
        [admin]
        token_file = "secret"
        [ledger]
        on_ledger_failure = "refuse"
        [upstreams.openai]
        base_url = "http://10.0.0.1/v1"
        api_key_file = "secret"
        """
    )
    write_keys(directory / "keys", f"{KEY.format(1)} models=gpt-4o,in-house-1,in-house-* budget=5usd/day")
    result = run("--config", "f.toml")
    assert result.exit_code == 0
    assert result.stderr.splitlines() == [
        "warning: [admin] token_file: set, but [server] admin is not, so that nothing asks for the token",
        "warning: [server] trusted_proxies: none, so that proxy_protocol lets nobody in but by a UNIX socket",
        f"warning: [upstreams.openai] base_url: http, so that the key in {directory}/secret crosses the network "
        "unencrypted",
        "warning: [ledger] on_ledger_failure: refuse, but [server] state is not set, so that there is no ledger",
        "warning: [server] state: not set, so that a restart forgets what was spent of budgets",
        f"warning: {directory}/keys: the key k7Qm2xW9pLz4 names the model in-house-1, which has no price, so that its "
        "budget refuses it; add it to [prices], or set [estimates] price",
    ]
    assert "canary" not in result.output


@pytest.mark.parametrize(
    "remedy", ["[prices.'in-house-1']\ninput = 0", "[estimates]\nprice = 0", "[prices.'in-*']\ninput = 1"]
)
def test_a_price_lets_a_budget_allow_a_model(directory: Path, remedy: str) -> None:
    (directory / "f.toml").write_text(f"[server]\nstate = 'state'\n[limits]\nbudget = '5usd/day'\n{remedy}")
    write_keys(directory / "keys", f"{KEY.format(1)} models=gpt-4o,in-house-1")
    assert run("--config", "f.toml").stderr == ""
    (directory / "f.toml").write_text("[server]\nstate = 'state'\n[limits]\nbudget = '5usd/day'")
    assert run("--config", "f.toml").stderr.count("has no price") == 1


@pytest.mark.parametrize(
    ("tables", "attributes", "told"),
    [
        ("", "tpm=4111", ["keys: the key k7Qm2xW9pLz4 has tpm=4111, less than the 4112 tokens"]),
        ("", "tpm=4112", []),
        ("[estimates]\noutput_tokens = 100", "tpm=115", ["has tpm=115, less than the 116 tokens"]),
        ("[estimates]\noutput_tokens = 100", "tpm=116", []),
        ("[limits]\ntpm = 4000", "", ["[limits] has tpm=4000, less than the 4112 tokens"]),
        (
            "[upstreams.openai]\nbase_url = 'https://a/v1'\n[upstreams.openai.limits]\ntpm = 9",
            "tpm=9",
            ["[upstreams.openai] limits has tpm=9, less", "the key k7Qm2xW9pLz4 has tpm=9, less"],
        ),
        # 16 tokens at 4.25 and 4,096 at 17.00 USD a million, of the dearest tier, are 0.0697 USD.
        (
            "",
            "models=gpt-4o budget=0.06usd/day",
            ["budget=0.06usd/day, less than the 0.0697 USD that gpt-4o may cost for the 4112 tokens"],
        ),
        ("", "models=gpt-4o budget=0.0697usd/day", []),
        ("", "models=gpt-4o* budget=0.01usd/day", []),
        ("[limits]\nbudget = '0.06usd/day'", "models=gpt-4o", ["has budget=0.06usd/day, less than the 0.0697 USD"]),
        ("[limits]\nbudget = '0.04usd/day'", "models=gpt-4o budget=1usd/day", []),
        ("[prices.'gpt-4o']\noutput = 0\ninput = 0", "models=gpt-4o budget=0.000001usd/day", []),
    ],
)
def test_a_limit_below_what_any_undeclared_request_is_estimated_at_draws_a_warning(
    directory: Path, tables: str, attributes: str, told: list[str]
) -> None:
    (directory / "f.toml").write_text(f"[server]\nstate = 'state'\n{tables}")
    write_keys(directory / "keys", f"{KEY.format(1)} {attributes}")
    result = run("--config", "f.toml")
    assert result.exit_code == 0
    lines = result.stderr.splitlines()
    assert len(lines) == len(told), lines
    for line, words in zip(lines, told, strict=True):
        assert words in line and "each such request is refused" in line


@pytest.mark.parametrize(
    ("own", "groups", "told"),
    [
        ("rpm=601", "rpm=600", "has rpm=601, which is never reached: its group search has 600"),
        ("rpm=600", "rpm=600", None),
        ("rpm=601", "tpm=9000", None),
        ("max_parallel=5", "max_parallel=4", "has max_parallel=5, which is never reached"),
        ("budget=51usd/month", "budget=50usd/month", "has budget=51usd/month, which is never reached"),
        ("budget=51usd/day", "budget=50usd/month", "has budget=51usd/day, which is never reached"),
        ("budget=51usd/month", "budget=50usd/day", None),
        ("budget=51usd/total", "budget=50usd/month", None),
        ("rpm=5", "tpm=100", "keys: the group search has tpm=100, less than the 4112 tokens"),
        ("models=gpt-4o", "budget=0.01usd/day", "has budget=0.01usd/day, less than the 0.0697 USD"),
    ],
)
def test_a_limit_that_a_groups_makes_void_or_a_groups_own_that_is_too_low_draws_a_warning(
    directory: Path, own: str, groups: str, told: str | None
) -> None:
    (directory / "f.toml").write_text("[server]\nstate = 'state'\n")
    write_keys(directory / "keys", f"@search {groups}", f"{KEY.format(1)} group=search {own}")
    result = run("--config", "f.toml")
    assert result.exit_code == 0, result.output
    assert (told in result.stderr and result.stderr.count("\n") == 1) if told else result.stderr == ""


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_a_providers_key_may_go_unencrypted_to_this_machine(directory: Path, host: str) -> None:
    (directory / "secret").write_text("canary")
    (directory / "secret").chmod(0o600)
    (directory / "f.toml").write_text(f"[upstreams.openai]\nbase_url = 'http://{host}:9000'\napi_key_file = 'secret'")
    assert run("--config", "f.toml").stderr == ""


@pytest.mark.parametrize("secret", [f"fsk-{'0aB' * 18}", "sk-proj-0123456789abcdef"])
@pytest.mark.parametrize("option", ["--keys", "--config"])
def test_what_looks_like_a_key_in_place_of_a_files_path_is_shortened(directory: Path, option: str, secret: str) -> None:
    short = f"{secret.partition('-')[0]}-..."
    result = run(option, secret)
    assert result.exit_code == 1
    assert short in result.stderr
    assert secret not in result.output
    write_keys(directory / secret, KEY.format(1))
    (directory / secret).chmod(0o604)
    result = run("--keys", secret)
    assert (result.exit_code, secret in result.output) == (0, False)
    assert f"{short}: found mode 0604" in result.stderr
    assert f"1 in {directory}/{short}" in result.stdout


def test_help_teaches_with_an_example() -> None:
    result = run("--help")
    assert result.exit_code == 0
    assert "  flowstack check --config /etc/flowstack/flowstack.toml\n" in result.stdout


def test_checking_writes_nothing(directory: Path) -> None:
    (directory / "f.toml").write_text("[server]\nstate = 'state'\nadmin = 'unix:admin.sock'\n[log]\nrequests = 'log'")
    before = sorted(directory.iterdir())
    assert run("--config", "f.toml").exit_code == 0
    assert sorted(directory.iterdir()) == before


def warnings(url: str, directory: Path, more: str = "") -> list[str]:
    (directory / "f.toml").write_text(f"{more}\n[upstreams.openai]\nbase_url = '{url}'")
    result = run("--config", "f.toml")
    assert result.exit_code == 0
    return result.stderr.splitlines()


@pytest.mark.parametrize(
    ("url", "instead"),
    [
        ("http://api.openai.com/v1", "write https://api.openai.com/v1 if"),
        ("http://93.184.216.34/v1", "write https://93.184.216.34/v1 if"),
        ("https://api.openai.com", "write https://api.openai.com/v1"),
        ("https://eu.api.openai.com/", "write https://eu.api.openai.com/v1"),
        ("https://name.openai.azure.com", "write https://name.openai.azure.com/openai/v1"),
        ("https://api.anthropic.com", "write https://api.anthropic.com/v1"),
        ("https://api.openai.com/v1/chat/completions", "write https://api.openai.com/v1"),
        ("https://api.openai.com/v1/responses", "write https://api.openai.com/v1"),
        ("https://api.openai.com/v1/models", "write https://api.openai.com/v1"),
        ("https://api.openai.com/chat/completions", "write https://api.openai.com"),
        ("https://x.example:8443/a/v1/embeddings/", "write https://x.example:8443/a/v1"),
    ],
)
def test_a_base_url_that_is_hardly_meant_draws_a_warning_with_what_to_write(
    directory: Path, url: str, instead: str
) -> None:
    (told,) = warnings(url, directory)
    assert told.startswith("warning: [upstreams.openai] base_url: ")
    assert instead in told


@pytest.mark.parametrize(
    "url",
    ["https://api.openai.com/v1", "https://name.openai.azure.com/openai/v1", "https://x.example", "http://vllm:8000/v1",
     "http://10.0.0.7/v1", "http://vllm.internal", "http://127.0.0.1:8000", "https://x.example/models/a/v1"],
)  # fmt: skip
def test_a_usual_base_url_draws_no_warning(directory: Path, url: str) -> None:
    assert warnings(url, directory) == []


def test_a_base_path_for_every_prefix_takes_the_place_of_a_path(directory: Path) -> None:
    server = "[server]\nprefixes = [{path = '/v1/', base_path = '/v1/'}]"
    assert warnings("https://api.openai.com", directory, server) == []


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
def test_a_proxy_in_the_environment_is_said_not_to_be_used(
    directory: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "http://user:secret@proxy.example:3128")
    assert run().stderr.splitlines() == [
        f"warning: {name}: set in the environment, and not used; set proxy in [upstreams.NAME] if it is meant"
    ]


def _no_folder(state: Path) -> None:
    state.parent.rmdir()


def _a_file(state: Path) -> None:
    state.touch()


def _a_file_below(state: Path) -> None:
    state.mkdir()
    (state / "limits").touch()


@pytest.mark.parametrize(
    ("harm", "found"),
    [
        (_no_folder, "'{}/p/state', whose folder '{}/p' does not exist"),
        (_a_file, "'{}/p/state', which is no directory"),
        (_a_file_below, "'{}/p/state/limits', which is no directory"),
    ],
)
def test_a_state_directory_that_a_start_could_not_use_is_a_fault(
    directory: Path, harm: Callable[[Path], None], found: str
) -> None:
    (directory / "f.toml").write_text("[server]\nstate = 'p/state'")
    (directory / "p").mkdir()
    harm(directory / "p" / "state")
    result = run("--config", "f.toml")
    assert result.exit_code == 1
    expected = "a directory in which this user can write, or can make it"
    told = found.replace("{}", str(directory))
    assert result.stderr == f"f.toml: [server] state: found {told}, expected {expected}\n"


def test_every_place_that_a_start_could_not_use_is_told_beside_every_other_fault(directory: Path) -> None:
    (directory / "none.sock").touch()
    (directory / "dir").mkdir()
    (directory / "f.toml").write_text(
        f"""
        [server]
        listen = ["unix:none/sock", "unix:none.sock", "tcp:1"]
        admin = "unix:none/admin"
        state = "none/state"
        [timeouts]
        connect = 0
        [log]
        requests = "{directory}/dir"
        """
    )
    result = run("--config", "f.toml")
    assert result.exit_code == 1
    places = [line.partition(": found")[0].removeprefix("f.toml: ") for line in result.stderr.splitlines()]
    assert places == ["[timeouts] connect", "[server] state", "[server] listen[0]", "[server] listen[1]",
                      "[server] admin", "[log] requests"]  # fmt: skip


def test_a_setting_that_is_at_fault_already_is_not_told_twice(directory: Path) -> None:
    (directory / "f.toml").write_text(f"[server]\nlisten = ['unix:{'x' * 108}', 'unix:none/sock']")
    (line,) = run("--config", "f.toml").stderr.splitlines()
    assert "whose path has 108 bytes, expected a path of at most 107 bytes" in line


def test_a_request_log_that_is_a_fifo_draws_a_warning_and_is_not_opened(directory: Path) -> None:
    os.mkfifo(directory / "fifo")
    (directory / "f.toml").write_text("[log]\nrequests = 'fifo'")
    result = run("--config", "f.toml")
    assert result.exit_code == 0
    assert f"warning: [log] requests: {directory}/fifo is a FIFO" in result.stderr


@needs_root
def test_what_the_service_s_user_could_not_write_to_is_a_fault_to_that_user() -> None:
    with public_folder() as folder:
        write_keys(folder / "keys", KEY.format(1))
        (folder / "keys").chmod(0o644)
        (folder / "log").touch(mode=0o644)
        for name in ("mine", "state", "state/limits"):
            (folder / name).mkdir(exist_ok=True)
        os.chown(folder / "state", NOBODY, NOBODY)
        (folder / "f.toml").write_text(
            f"[server]\nkeys = '{folder}/keys'\nlisten = ['unix:{folder}/mine/sock']\nstate = '{folder}/state'\n"
            f"[log]\nrequests = '{folder}/log'"
        )
        imports = """
            from pathlib import Path
            import twisted.internet.endpoints
            from flowstack.config import ConfigError, load
        """
        body = """
            try:
                load(path, starting=True)
            except ConfigError as error:
                print(error)
        """
        told = told_as_nobody(imports, body, folder / "f.toml")
        assert [line.partition(", expected")[0].partition("toml: ")[2] for line in told.splitlines()] == [
            f"[server] state: found '{folder}/state/limits', in which this user ({NOBODY}) may not write",
            f"[server] listen[0]: found '{folder}/mine/sock', in whose folder this user ({NOBODY}) may not write",
            f"[log] requests: found '{folder}/log', to which this user ({NOBODY}) may not write",
        ]


@needs_root
def test_a_folder_that_a_user_may_not_enter_is_one_fault_among_all_of_them() -> None:
    with public_folder() as folder:
        (folder / "state" / "limits").mkdir(parents=True)
        (folder / "state" / "limits" / "lock").touch()
        (folder / "state").chmod(0o755)
        (folder / "state" / "limits").chmod(0o700)
        (folder / "f.toml").write_text(f"[server]\nstate = '{folder}/state'\nworkers = -1")
        imports = """
            from pathlib import Path
            from flowstack.config import ConfigError, load
        """
        body = """
            try:
                load(path, starting=True)
            except ConfigError as error:
                print(error)
        """
        told = told_as_nobody(imports, body, folder / "f.toml")
        assert "[server] workers: found -1" in told
        assert f"'{folder}/state/limits', in which this user ({NOBODY}) may not write" in told


def test_groups_that_limit_nobody_draw_a_warning_and_a_missing_one_is_a_fault(directory: Path) -> None:
    (directory / "f.toml").write_text("[server]\nstate = 'state'\n")
    other = KEY.format(2).replace("k7", "p3")
    write_keys(directory / "keys", "@a rpm=5", "@b", "@c", f"{KEY.format(1)} group=a", f"{other} group=b")
    result = run("--config", "f.toml")
    assert result.exit_code == 0
    assert result.stderr.splitlines() == [
        f"warning: {directory}/keys: the group b has no limit, so that it only names its keys in the ledger; add one, "
        "such as rpm=6000, if one is meant",
        f"warning: {directory}/keys: no key names the group c; add group=c to a key's line",
    ]
    assert f"  keys      2 in {directory}/keys, and 3 groups" in result.stdout.splitlines()
    write_keys(directory / "keys", "@a rpm=5", f"{KEY.format(1)} group=d")
    result = run("--config", "f.toml")
    assert result.exit_code == 1
    assert "keys:2:" in result.stderr and "group: found 'd', which has no line in this file" in result.stderr


def test_a_group_s_budget_is_warned_of_as_a_key_s_own(directory: Path) -> None:
    write_keys(directory / "keys", "@a budget=5usd/day", f"{KEY.format(1)} group=a models=in-house-1")
    told = run().stderr
    assert "a restart forgets what was spent of budgets" in told
    assert "names the model in-house-1, which has no price" in told


__all__ = ["postgres", "shared"]


def with_ledger(directory: Path, shared: Shared) -> Result:
    (directory / "f.toml").write_text(
        f"""
        [server]
        state = "state"
        [shared]
        postgres = "{shared.postgres}"
        postgres_password_file = "{shared.postgres_password_file}"
        postgres_tls = false
        """
    )
    return run("--config", "f.toml")


def test_the_ledger_of_all_machines_is_connected_to_and_its_version_told(directory: Path, shared: Shared) -> None:
    result = with_ledger(directory, shared)
    assert (result.exit_code, result.stderr) == (0, "")
    assert re.search(r"^  postgres  PostgreSQL \d+ at 127.0.0.1:\d+, no tables yet, which", result.stdout, re.MULTILINE)


def test_a_ledger_of_all_machines_that_lets_nobody_in_is_a_fault(directory: Path, shared: Shared) -> None:
    assert shared.postgres_password_file is not None
    shared.postgres_password_file.write_text("wrong")
    result = with_ledger(directory, shared)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "password authentication failed" in result.stderr
    assert len(result.stderr.splitlines()) == 1

"""Targets, retry, fallback and routes by model in the configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowstack.config import ConfigError, Settings, parse
from flowstack.config.settings import Fallback, Health, Retry, Target

AZURE = "[upstreams.azure]\nbase_url = 'https://azure.example/v1'\n"


def parsed(text: str, **flags: object) -> Settings:
    return parse(text.encode(), "f", flags)


def faults(text: str, **flags: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parsed(text, **flags)
    return [str(one).removeprefix("f: ") for one in caught.value.faults]


def test_targets_retry_health_and_fallback_are_read(secret_file: Path) -> None:
    openai, azure = parsed(
        f"""
        [upstreams.openai]
        default = true
        first_byte = 20
        on_client_gone = "drain"
        [upstreams.openai.targets.eu]
        base_url = "https://eu.example/v1/"
        weight = 3
        [upstreams.openai.targets.us]
        base_url = "https://us.example/v1"
        [upstreams.openai.retry]
        on = ["reset", 503]
        attempts = 4
        [upstreams.openai.health]
        panic = 0
        [upstreams.openai.fallback]
        to = "azure"
        models = {{"gpt-4.1" = "llama", "gpt-*" = "small"}}
        [upstreams.azure]
        base_url = "https://azure.example/v1"
        api_key_file = "{secret_file}"
        models = ["claude-*", "o1"]
        """
    ).upstreams
    assert openai.targets == (Target("eu", "https://eu.example/v1", 3), Target("us", "https://us.example/v1"))
    assert openai.base_url == "https://eu.example/v1"
    assert openai.retry == Retry(on=("reset", 503), attempts=4)
    assert openai.health == Health(panic=0.0)
    assert openai.fallback == Fallback("azure", (("gpt-4.1", "llama"), ("gpt-*", "small")))
    assert (openai.first_byte, openai.on_client_gone) == (20.0, "drain")
    assert (azure.models, azure.retry, azure.fallback, azure.targets) == (("claude-*", "o1"), None, None, ())


OPENAI = "upstreams.openai"
WEIGHT = "a whole number of parts from 1 to 1000"
FAILURE = "one of connect, reset, timeout, or a status from 401 to 599"

ALONE = {
    "targets = {}": f"[{OPENAI}] targets: found no target, expected at least one table [{OPENAI}.targets.NAME]",
    "targets = 5": f"[{OPENAI}] targets: found 5, expected tables",
    "targets.eu = 5": f"[{OPENAI}.targets] eu: found 5, expected a table",
    "targets.eu.weight = 0": [
        f"[{OPENAI}.targets.eu] weight: found 0, expected {WEIGHT}",
        f"[{OPENAI}.targets.eu] base_url: found nothing, expected the target's base URL",
    ],
    "targets.eu = {base_url = 'ftp://x'}": f"[{OPENAI}.targets.eu] base_url: found 'ftp://x', expected http:// or "
    "https://, a host, perhaps a port and a path, such as https://api.openai.com/v1",
    "targets.eu = {base_url = 'https://x', wait = 1}": f"[{OPENAI}.targets.eu] wait: found an unknown key, expected "
    "one of base_url, weight, api_key_file, ca_file, client_cert_file, client_key_file, proxy, proxy_auth_file, socket "
    "(did you mean weight?)",
    "targets.'e u' = {base_url = 'https://x'}": f"[{OPENAI}.targets] 'e u': found the name 'e u', expected at most 64 "
    "letters, digits, - and _, the first a letter or digit",
    "base_url = 'https://y'\ntargets.eu.base_url = 'https://x'": f"[{OPENAI}] base_url: found it beside targets, "
    "expected no such key: each target has its own",
    "retry.on = ['conect', 400, 200, true, 'timeout', 'timeout']": [
        f"[{OPENAI}.retry] on[0]: found 'conect', expected {FAILURE}",
        f"[{OPENAI}.retry] on[1]: found 400, expected {FAILURE}",
        f"[{OPENAI}.retry] on[2]: found 200, expected {FAILURE}",
        f"[{OPENAI}.retry] on[3]: found true, expected {FAILURE}",
        f"[{OPENAI}.retry] on[5]: found 'timeout' a second time, expected each only once",
    ],
    "retry.attempts = 0": f"[{OPENAI}.retry] attempts: found 0, expected a whole number of attempts from 1 to 10",
    "retry.budget = 2": f"[{OPENAI}.retry] budget: found 2, expected a number from 0 to 1",
    "retry.backoff_growth = 0.5": f"[{OPENAI}.retry] backoff_growth: found 0.5, expected a number from 1 to 10",
    "retry.backoff = 9": f"[{OPENAI}.retry] backoff_max: found 5, and backoff = 9, expected no less than backoff",
    "health.eject = 9": f"[{OPENAI}.health] eject_max: found 5, and eject = 9, expected no less than eject",
    "health.panic = -1": f"[{OPENAI}.health] panic: found -1, expected a number from 0 to 1",
    "on_client_gone = 'stay'": f"[{OPENAI}] on_client_gone: found 'stay', expected one of cancel, drain",
    "first_byte = 0": f"[{OPENAI}] first_byte: found 0, expected a number of seconds above 0, at most 31536000",
    "fallback = {}": f"[{OPENAI}.fallback] to: found nothing, expected the name of another upstream",
    "fallback.to = 'azure'": f"[{OPENAI}.fallback] to: found 'azure', expected another upstream: openai",
    "fallback = {to = 'openai'}": [
        f"[{OPENAI}.fallback] to: found 'openai', which has no api_key_file, expected an upstream with a provider key "
        "of its own: the client's is for openai alone",
        f"[{OPENAI}.fallback] to: found a circle: openai to openai, expected fallbacks that end",
    ],
    "fallback = {to = 'b', models = {'a b' = 'x', 'y' = 'z*', 'v' = 5}}": [
        f"[{OPENAI}.fallback.models] 'a b': found 'a b', expected a model's name, or a pattern such as gpt-4o*, "
        "without spaces",
        f"[{OPENAI}.fallback.models] y: found 'z*', expected a model's name, without spaces and without '*'",
        f"[{OPENAI}.fallback.models] v: found 5, expected a model's name, without spaces and without '*'",
    ],
}


@pytest.mark.parametrize(("line", "expected"), ALONE.items(), ids=[*ALONE])
def test_what_is_wrong_is_told_with_its_place(line: str, expected: str | list[str]) -> None:
    assert faults(f"[{OPENAI}]\n{line}") == ([expected] if isinstance(expected, str) else expected)


def test_a_fallback_without_a_key_of_its_own_is_a_fault() -> None:
    assert faults(f"[upstreams.openai]\ndefault = true\nfallback.to = 'azure'\n{AZURE}") == [
        "[upstreams.openai.fallback] to: found 'azure', which has no api_key_file, expected an upstream with a "
        "provider key of its own: the client's is for openai alone"
    ]


def test_fallbacks_that_lead_round_are_a_fault_of_each(secret_file: Path) -> None:
    text = "".join(
        f"[upstreams.{one}]\nbase_url = 'http://{one}'\napi_key_file = '{secret_file}'\nfallback.to = '{to}'\n"
        for one, to in (("a", "b"), ("b", "c"), ("c", "b"))
    )
    assert faults(text.replace("[upstreams.a]", "[upstreams.a]\ndefault = true")) == [
        "[upstreams.b.fallback] to: found a circle: b to c to b, expected fallbacks that end",
        "[upstreams.c.fallback] to: found a circle: c to b to c, expected fallbacks that end",
    ]


def test_either_all_targets_have_a_key_or_none(secret_file: Path) -> None:
    two = "targets.eu.base_url = 'https://eu'\ntargets.us.base_url = 'https://us'\n"
    one = f"targets.eu.api_key_file = '{secret_file}'\n"
    assert faults(f"[{OPENAI}]\n{two}{one}") == [
        "[upstreams.openai] targets: found api_key_file: none in us, and one in the others, expected one for each "
        "target, or for none"
    ]
    parsed(f"[{OPENAI}]\n{two}{one}api_key_file = '{secret_file}'")


def test_the_flag_for_a_base_url_is_a_fault_beside_targets() -> None:
    assert faults(f"[{OPENAI}]\ntargets.eu.base_url = 'https://eu'", upstream="https://x") == [
        "--upstream: found a base URL beside targets, expected no such flag; the targets of openai have their own in "
        "the file"
    ]


def test_a_pattern_of_models_selects_one_upstream_only() -> None:
    assert faults(f"[upstreams.openai]\ndefault = true\nmodels = ['o1']\n{AZURE}models = ['o1']") == [
        "[upstreams.azure] models: found 'o1', which selects openai, expected a pattern in one upstream only"
    ]

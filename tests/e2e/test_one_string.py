"""Clients with one box for a key, and none for headers, send both keys in it: ``<Flowstack key>~<provider key>``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.crowd import journal
from tests.e2e.processes import Proxy, StandIn
from tests.e2e.sdk_runs import OPENAI_KEY, SCRIPTS, Attempt, Outcome, Sdks, once, shell

pytestmark = [
    pytest.mark.e2e,
]


@pytest.fixture(scope="module")
def proxy(stand_in: StandIn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    proxy = Proxy(tmp_path_factory.mktemp("one-string"), f"{stand_in.url}/v1")
    try:
        yield proxy
    finally:
        proxy.stop()


@pytest.fixture(scope="module")
def outcomes(proxy: Proxy, sdks: Sdks) -> Callable[[str], dict[str, Outcome]]:
    @once
    def run(sdk: str) -> dict[str, Outcome]:
        headers = {"X-Client-Tag": f"one-string-{sdk}"}
        return sdks.attempts(
            sdk,
            [
                Attempt(name="chat", base_url=proxy.base_url, headers=headers, api_key=both(proxy)),
                Attempt(name="stream", base_url=proxy.base_url, headers=headers, api_key=both(proxy), stream=True),
                Attempt(name="mistyped", base_url=proxy.base_url, headers={}, api_key=f"{proxy.key[:-1]}~{OPENAI_KEY}"),
            ],
        )

    return run


def both(proxy: Proxy) -> str:
    return f"{proxy.key}~{OPENAI_KEY}"


@pytest.mark.parametrize("sdk", SCRIPTS)
def test_an_sdk_takes_both_keys_as_its_api_key(
    sdk: str, proxy: Proxy, stand_in: StandIn, outcomes: Callable[[str], dict[str, Outcome]]
) -> None:
    found = outcomes(sdk)
    assert found["chat"].raised is None, found["chat"].raised
    assert found["chat"].value is not None
    assert found["stream"].raised is None and found["stream"].pieces, found["stream"]
    seen = stand_in.seen(f"one-string-{sdk}")
    assert len(seen) == 2
    for record in seen:
        sent = [value for name, value in record["headers"] if name.lower() == "authorization"]
        assert sent == [f"Bearer {OPENAI_KEY}"]
        assert "fsk-" not in record["head"]


@pytest.mark.parametrize("sdk", SCRIPTS)
def test_an_sdk_raises_its_own_exception_where_the_first_is_mistyped(
    sdk: str, outcomes: Callable[[str], dict[str, Outcome]]
) -> None:
    raised = outcomes(sdk)["mistyped"].raised
    assert raised is not None, "the call succeeded"
    assert (raised["status"], raised["code"]) == (401, "invalid_flowstack_key"), raised
    assert OPENAI_KEY not in str(raised)


@pytest.mark.parametrize("field", ["Authorization: Bearer ", "api-key: ", "x-api-key: "])
def test_curl_does_with_one_header(field: str, proxy: Proxy, stand_in: StandIn, tmp_path: Path) -> None:
    tag = f"one-string-{field[:4]}"
    rows = len(journal(proxy))
    said = shell(
        f"curl -sSf {proxy.base_url}/models -H '{field}{both(proxy)}' -H 'X-Client-Tag: {tag}' -H 'X-Kept: a'", tmp_path
    )
    assert '"object"' in said
    (record,) = stand_in.seen(tag)
    assert f"\r\n{field}{OPENAI_KEY}\r\nX-Client-Tag: {tag}\r\nX-Kept: a\r\n" in record["head"]
    assert "fsk-" not in record["head"]
    assert len(journal(proxy)) == rows + 1


def test_neither_key_is_in_anything_that_the_proxy_wrote(
    proxy: Proxy, outcomes: Callable[[str], dict[str, Outcome]]
) -> None:
    assert outcomes("python-openai")["mistyped"].raised is not None
    proxy.assert_no_secrets([proxy.key, OPENAI_KEY])

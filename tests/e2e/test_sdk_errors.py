"""Whatever goes wrong, an SDK raises its own typed exception, and a program can tell Flowstack's errors from the
upstream's by the header ``Flowstack-Error``."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from typing import Any

import pytest
from attrs import astuple, frozen

from tests.e2e.processes import Proxy, StandIn, stop_all
from tests.e2e.sdk_runs import OPENAI_KEY, Attempt, Outcome, Sdks, once

pytestmark = [
    pytest.mark.e2e,
]

NEW = {
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    409: "ConflictError",
    413: "APIStatusError",
    422: "UnprocessableEntityError",
    429: "RateLimitError",
    500: "InternalServerError",
    502: "InternalServerError",
    503: "InternalServerError",
    504: "InternalServerError",
}
OLD = {
    400: "InvalidRequestError",
    401: "AuthenticationError",
    403: "PermissionError",
    404: "InvalidRequestError",
    409: "TryAgain",
    413: "APIError",
    422: "APIError",
    429: "RateLimitError",
    500: "APIError",
    502: "APIError",
    503: "ServiceUnavailableError",
    504: "APIError",
}
NODE = NEW | {413: "APIError"}
AI_SDK = dict.fromkeys(NEW, "APICallError")
"""The exception of each status, as each family of SDKs documents it."""

FAMILIES = {
    "python-openai": NEW,
    "python-openai-0.28": OLD,
    "node-openai": NODE,
    "node-openai-4": NODE,
    "langchain": NEW,
    "llamaindex": NEW,
    "node-ai-sdk": AI_SDK,
}
WHOLE_TABLE = ("python-openai", "python-openai-0.28", "node-openai", "node-openai-4")


@frozen
class Fronts:
    """Proxies that each make one kind of trouble easy to meet."""

    plain: Proxy
    hasty: Proxy
    unreachable: Proxy
    tiny: Proxy
    narrow: Proxy
    disabled_key: str
    expired_key: str


@frozen
class Refusal:
    """An error of Flowstack's own, and how a client comes by it."""

    status: int
    code: str
    call: Callable[[Fronts], dict[str, Any]]


def bearer(token: str) -> dict[str, str]:
    return {"Flowstack-Auth": f"Bearer {token}"}


def at(proxy: Proxy, **changes: Any) -> dict[str, Any]:
    return {"base_url": proxy.base_url, "headers": proxy.headers} | changes


OURS = {
    "no key": Refusal(401, "missing_flowstack_key", lambda to: at(to.plain, headers={})),
    "no key, streaming": Refusal(401, "missing_flowstack_key", lambda to: at(to.plain, headers={}, stream=True)),
    "unknown key": Refusal(401, "invalid_flowstack_key", lambda to: at(to.plain, headers=to.tiny.headers)),
    "mistyped key": Refusal(401, "invalid_flowstack_key", lambda to: at(to.plain, headers=bearer(to.plain.key + "0"))),
    "key of another scheme": Refusal(
        401, "invalid_flowstack_key", lambda to: at(to.plain, headers={"Flowstack-Auth": f"Basic {to.plain.key}"})
    ),
    "disabled key": Refusal(401, "flowstack_key_disabled", lambda to: at(to.plain, headers=bearer(to.disabled_key))),
    "expired key": Refusal(401, "flowstack_key_expired", lambda to: at(to.plain, headers=bearer(to.expired_key))),
    "Flowstack key as the provider's": Refusal(
        401, "misplaced_key", lambda to: at(to.plain, headers={}, api_key=to.plain.key)
    ),
    "Flowstack key in both places": Refusal(401, "misplaced_key", lambda to: at(to.plain, api_key=to.plain.key)),
    "provider's key as Flowstack's": Refusal(401, "misplaced_key", lambda to: at(to.plain, headers=bearer(OPENAI_KEY))),
    "too many attributes": Refusal(
        400,
        "malformed_request",
        lambda to: at(to.plain, faults={f"Flowstack-Attribute-{number}": "x" for number in range(17)}),
    ),
    "path outside the prefixes": Refusal(404, "unknown_path", lambda to: at(to.plain, base_url=f"{to.plain.url}/v2")),
    "request too large": Refusal(413, "request_too_large", lambda to: at(to.tiny)),
    "upstream not there": Refusal(502, "upstream_unreachable", lambda to: at(to.unreachable)),
    "upstream not there, streaming": Refusal(502, "upstream_unreachable", lambda to: at(to.unreachable, stream=True)),
    "upstream hangs up": Refusal(502, "upstream_closed", lambda to: at(to.plain, faults={"Stand-In": "drop"})),
    "upstream speaks no HTTP": Refusal(
        502, "upstream_malformed", lambda to: at(to.plain, faults={"Stand-In": "garbage"})
    ),
    "no connection comes free": Refusal(503, "overloaded", lambda to: at(to.narrow)),
    "upstream too slow": Refusal(504, "upstream_timeout", lambda to: at(to.hasty, faults={"Stand-In": "delay=60"})),
}
"""Every error of the contract that a client can meet by now."""

THEIRS = {f"upstream's {status}": status for status in (400, 401, 403, 404, 409, 422, 429, 500, 503)}

CUTS: dict[str, dict[str, Any]] = {
    "reset in a stream": {"stream": True, "faults": {"Stand-In": "chunks=20;cut=900"}},
    "closed in a stream": {"stream": True, "faults": {"Stand-In": "chunks=20;close=900"}},
    "reset in an answer": {"faults": {"Stand-In": "cut=40"}},
    "closed in an answer": {"faults": {"Stand-In": "close=40"}},
    "reset in a chunked answer": {"faults": {"Stand-In": "cut=40;chunked"}},
}
UNNOTICED = {("node-openai-4", "reset in an answer"), ("node-openai-4", "closed in an answer")}
"""Where an SDK waits for ever, straight from the upstream too: version 4 for Node reads by node-fetch 2, which loses
the error of an answer with a Content-Length."""


def makes(sdk: str, cut: str) -> bool:
    return (sdk, cut) not in UNNOTICED


@pytest.fixture(scope="session")
def fronts(proxy: Proxy, stand_in: StandIn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fronts]:
    folder = tmp_path_factory.mktemp("fronts")
    upstream = f"{stand_in.url}/v1"
    started: list[Proxy] = []

    def start(name: str, base_url: str = upstream, **settings: Any) -> Proxy:
        started.append(Proxy(folder / name, base_url, settings=settings))
        return started[-1]

    # A port that is bound, so that nobody else gets it, but never listened on.
    with closing(socket.socket()) as nobody:
        nobody.bind(("127.0.0.1", 0))
        try:
            found = Fronts(
                plain=proxy,
                hasty=start("hasty", timeouts={"response_head": 1}),
                unreachable=start("unreachable", f"http://127.0.0.1:{nobody.getsockname()[1]}/v1"),
                tiny=start("tiny", server={"max_request_bytes": 16}),
                # Its connection is taken for as long as the calls of all SDKs last.
                narrow=start(
                    "narrow", upstreams={"openai": {"max_connections": 1}}, timeouts={"queue": 0.2, "stream_idle": 7200}
                ),
                disabled_key=proxy.keystore.add("disabled"),
                expired_key=proxy.keystore.add("expires=2020-01-01"),
            )
            proxy.reload()
            with occupied(found.narrow):
                yield found
        finally:
            stop_all(started)


@contextmanager
def occupied(proxy: Proxy) -> Iterator[None]:
    """Hold a request open in a proxy, so that its one connection to the upstream is taken."""
    with closing(HTTPConnection("127.0.0.1", proxy.port)) as held:
        held.request(
            "POST",
            "/v1/chat/completions",
            '{"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hold"}]}',
            {"Content-Type": "application/json", "Authorization": f"Bearer {OPENAI_KEY}", "Stand-In": "hang"}
            | proxy.headers,
        )
        # Its head has come: the connection is in use from here on.
        assert held.getresponse().status == 200
        yield


@pytest.fixture(scope="session")
def outcomes(sdks: Sdks, fronts: Fronts, stand_in: StandIn) -> Callable[[str], dict[str, Outcome]]:
    """Makes all the calls of this file by one SDK, in one run of its script."""

    @once
    def run(sdk: str) -> dict[str, Outcome]:
        direct = f"{stand_in.url}/v1"
        jobs = [Attempt(name=name, **refusal.call(fronts)) for name, refusal in OURS.items()]
        for way in ({"base_url": direct, "headers": {}}, at(fronts.plain)):
            prefix = "direct, " if way["base_url"] == direct else ""
            jobs += [
                Attempt(name=prefix + name, faults={"Stand-In": f"status={status}"}, **way)
                for name, status in THEIRS.items()
            ]
            jobs += [Attempt(name=prefix + name, **(way | cut)) for name, cut in CUTS.items() if makes(sdk, name)]
        return sdks.attempts(sdk, jobs)

    return run


@pytest.mark.parametrize(
    ("sdk", "name"),
    [
        (sdk, name)
        for sdk in FAMILIES
        for name in OURS
        if sdk in WHOLE_TABLE or name in ("no key", "upstream not there")
    ],
)
def test_an_error_of_flowstack_raises_the_sdks_own_exception(
    sdk: str, name: str, outcomes: Callable[[str], dict[str, Outcome]]
) -> None:
    raised, refusal = outcomes(sdk)[name].raised, OURS[name]
    assert raised is not None, "the call succeeded"
    assert FAMILIES[sdk][refusal.status] in raised["types"], raised
    assert (raised["status"], raised["code"]) == (refusal.status, refusal.code), raised
    assert raised["headers"]["flowstack-error"] == refusal.code
    assert raised["headers"]["flowstack-request-id"]
    assert OPENAI_KEY not in str(raised)


@pytest.mark.parametrize(("sdk", "name"), [(sdk, name) for sdk in FAMILIES for name in THEIRS])
def test_an_error_of_the_upstream_passes_untouched_and_is_not_taken_for_flowstacks(
    sdk: str, name: str, outcomes: Callable[[str], dict[str, Outcome]]
) -> None:
    raised, direct = outcomes(sdk)[name].raised, outcomes(sdk)[f"direct, {name}"].raised
    assert raised is not None and direct is not None, "the call succeeded"
    assert FAMILIES[sdk][THEIRS[name]] in raised["types"], raised
    for what in ("types", "status", "code", "type"):
        assert raised[what] == direct[what]
    assert raised["status"] == THEIRS[name]
    assert "flowstack-error" not in raised["headers"]
    assert "flowstack-request-id" in raised["headers"]
    assert "x-request-id" in raised["headers"]


@pytest.mark.parametrize(("sdk", "name"), [(sdk, name) for sdk in FAMILIES for name in CUTS if makes(sdk, name)])
def test_an_answer_that_was_cut_never_looks_finished(
    sdk: str, name: str, outcomes: Callable[[str], dict[str, Outcome]]
) -> None:
    through, direct = outcomes(sdk)[name], outcomes(sdk)[f"direct, {name}"]
    assert through.raised is not None, f"ended as if whole: {through.value}"
    assert direct.raised is not None
    assert through.raised["status"] == direct.raised["status"], through.raised
    if CUTS[name].get("stream"):
        assert through.pieces, "not even what came before the cut was handed on"


def test_no_key_that_was_refused_is_in_any_proxys_log_or_state(
    fronts: Fronts, outcomes: Callable[[str], dict[str, Outcome]]
) -> None:
    assert len(outcomes("python-openai")) >= len(OURS)
    proxies = [found for found in astuple(fronts, recurse=False) if isinstance(found, Proxy)]
    keys = [OPENAI_KEY, *(token for proxy in proxies for token in proxy.keystore.tokens)]
    assert len(keys) > len(proxies)
    for proxy in proxies:
        proxy.assert_no_secrets(keys)

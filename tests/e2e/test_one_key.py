"""With the operator's provider key in a file a client needs its Flowstack key alone, and nobody sees the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from attrs import define, field

from tests.e2e.crowd import journal, once
from tests.e2e.processes import Keystore, Proxy, StandIn, children, contents, eventually, invoke, to_toml
from tests.e2e.raw import Answer, assert_own_error
from tests.e2e.raw_upstream import Front, Seen, Upstream, front, upstream
from tests.e2e.sdk_runs import Attempt, Outcome, Sdks
from tests.e2e.sdk_runs import once as remembered
from tests.e2e.test_workers import admin_port

pytestmark = pytest.mark.e2e

FIRST, SECOND = "sk-operator-1-kJ8sQw2LpX0vBn5TzR7y", "sk-operator-2-hG3dFc6MaZ9uYe1WqK4i"
CLIENTS_OWN = b"sk-what-the-client-has-itself"


def write(path: Path, text: str, mode: int = 0o600) -> None:
    """Put a file in place in one step, as an operator's tool does."""
    fresh = path.with_suffix(".new")
    fresh.touch(0o600)
    fresh.write_text(text)
    fresh.chmod(mode)
    fresh.replace(path)


@define
class House:
    """A proxy with two workers and two upstreams, for one of which the operator has a key.

    :ivar own: the upstream for which each client brings its own key; its host is ``own.example``.
    """

    ends: Front
    own: Upstream
    secret: Path
    named: str = field(repr=False)

    @property
    def key(self) -> str:
        """A Flowstack key that may do anything."""
        return self.ends.proxy.key

    def ask(self, line: str = "GET /v1/models", *fields: str, host: str = "one.example", body: str = "") -> Answer:
        """Send a request with these fields and no others."""
        lines = [f"{line} HTTP/1.1", f"Host: {host}", *fields]
        if body:
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        return once(self.ends.proxy.port, "\r\n".join([*lines, "", body]).encode())

    @property
    def auth(self) -> str:
        """The field with the Flowstack key."""
        return f"Flowstack-Auth: Bearer {self.key}"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("one-key")
    secret = folder / "openai.secret"
    write(secret, FIRST + "\n")
    with upstream() as own:
        settings: dict[str, Any] = {
            "server": {"workers": 2, "admin": "tcp:0:interface=127.0.0.1"},
            "upstreams": {
                "openai": {"default": True, "api_key_file": str(secret)},
                "own": {"base_url": f"http://127.0.0.1:{own.port}/v1", "hosts": ["own.example"], "default": False},
            },
        }
        with front(folder / "proxy", base="/v1", **settings) as ends:
            named = ends.proxy.keystore.add("endpoints=/v1/files*,POST:/v1/batches,/v1/chat/completions")
            assert ends.proxy.reload()["fault"] is None
            house = House(ends, own, secret, named)
            yield house
            assert ends.upstream.faults == own.faults == []
            ends.proxy.stop()
            assert_kept(house)


@pytest.fixture
def house(shared: House) -> House:
    shared.ends.upstream.forget()
    shared.own.forget()
    return shared


def credentials(seen: Seen) -> list[tuple[bytes, bytes]]:
    """Whatever in a request says who asks, and for whom."""
    names = (b"authorization", b"api-key", b"x-api-key", b"openai-organization", b"openai-project")
    return [pair for pair in seen.pairs if pair[0].lower() in names or pair[0].lower().startswith(b"flowstack")]


def bearer(key: str) -> list[tuple[bytes, bytes]]:
    return [(b"Authorization", f"Bearer {key}".encode())]


CHAT = ("POST /v1/chat/completions", '{"model": "gpt-4o", "messages": []}')


@pytest.mark.parametrize(
    "fields",
    [
        ("Flowstack-Auth: Bearer KEY",),
        ("Authorization: Bearer KEY",),
        ("Flowstack-Auth: Bearer KEY", "Authorization: Bearer KEY"),
        ("Flowstack-Auth: Bearer KEY", "Authorization: Bearer sk-another"),
        ("Flowstack-Auth: Bearer KEY", "authorization: Basic YTpi", "api-key: sk-1", "X-API-Key: KEY"),
        ("Authorization: Bearer KEY", "OpenAI-Organization: org-1", "OpenAI-Project: proj_1"),
    ],
    ids=["own header", "as api_key", "both", "with a provider's", "with many", "with an organization"],
)
def test_the_operator_s_key_takes_the_place_of_all_that_the_client_sent(house: House, fields: tuple[str, ...]) -> None:
    line, body = CHAT
    answer = house.ask(line, *(each.replace("KEY", house.key) for each in fields), body=body)
    assert (answer.status, answer.body) == (200, b"ok"), answer.body
    assert credentials(house.ends.upstream.last()) == bearer(FIRST)
    assert house.key.encode() not in house.ends.upstream.last().raw_head
    assert journal(house.ends.proxy)[-1]["key_id"] == house.key[4:16]


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ((), 401, "missing_flowstack_key"),
        (("Authorization: Bearer sk-a-provider-s",), 401, "missing_flowstack_key"),
        (("Authorization: Bearer fsk-000000000000",), 401, "invalid_flowstack_key"),
        (("Authorization: Basic YTpi",), 401, "invalid_flowstack_key"),
        (("Authorization: Bearer KEY", "Authorization: Bearer KEY"), 400, "malformed_request"),
        (("Flowstack-Auth: Bearer nobody-s", "Authorization: Bearer KEY"), 401, "invalid_flowstack_key"),
        (("Flowstack-Auth: Bearer sk-a-provider-s", "Authorization: Bearer KEY"), 401, "misplaced_key"),
        (("api-key: KEY",), 401, "misplaced_key"),
    ],
)
def test_nobody_gets_by_without_a_flowstack_key(house: House, fields: tuple[str, ...], status: int, code: str) -> None:
    answer = house.ask(CHAT[0], *(each.replace("KEY", house.key) for each in fields), body=CHAT[1])
    assert_own_error(answer, status, code)
    assert house.ends.upstream.requests == []


OPEN = ["GET /v1/models", "GET /v1/models/gpt-4o", *(
    f"POST /v1/{path}" for path in ("chat/completions", "completions", "responses", "embeddings", "moderations",
                                    "audio/speech", "images/generations"))]  # fmt: skip
CLOSED = [
    "GET /v1/files", "POST /v1/files", "GET /v1/files/file-1/content", "DELETE /v1/files/file-1", "GET /v1/batches",
    "POST /v1/batches", "GET /v1/responses/resp_1", "DELETE /v1/responses/resp_1", "GET /v1/chat/completions",
    "GET /v1/chat/completions/chatcmpl-1", "POST /v1/fine_tuning/jobs", "GET /v1/fine_tuning/jobs",
    "GET /v1/organization/usage/completions", "GET /v1/organization/admin_api_keys", "POST /v1/realtime/client_secrets",
    "POST /v1/vector_stores", "GET /v1/vector_stores", "POST /v1/conversations", "POST /v1/uploads",
    "POST /v1/threads", "DELETE /v1/models/ft:1", "PUT /v1/models", "OPTIONS /v1/files", "GET /v1/new",
    "GET /v1/models/%2e%2e%2ffiles", "GET /v1/chat%2fcompletions/x",
]  # fmt: skip


def test_inference_and_the_list_of_models_are_open(house: House) -> None:
    for line in OPEN:
        assert house.ask(line, house.auth, body=CHAT[1] if line.startswith("POST") else "").status == 200, line
        assert credentials(house.ends.upstream.last()) == bearer(FIRST)


def test_all_else_is_closed_unless_the_key_names_it(house: House) -> None:
    for line in CLOSED:
        answer = house.ask(line, house.auth, body=CHAT[1] if line.startswith(("POST", "PUT")) else "")
        assert answer.status == (400 if "%2e" in line else 403), (line, answer.body)
        assert house.ends.upstream.requests == [], line
    named = f"Flowstack-Auth: Bearer {house.named}"
    for line in ("GET /v1/files", "DELETE /v1/files/file-1", "POST /v1/batches"):
        assert house.ask(line, named, body=CHAT[1] if line.startswith("POST") else "").status == 200
        assert credentials(house.ends.upstream.last()) == bearer(FIRST)
    assert_own_error(house.ask("GET /v1/batches", named), 403, "endpoint_not_allowed")


def test_an_upstream_without_a_key_of_the_operator_s_gets_the_client_s_and_never_another_s(house: House) -> None:
    answer = house.ask("GET /v1/files", house.auth, f"Authorization: Bearer {CLIENTS_OWN.decode()}", host="own.example")
    assert answer.status == 200
    assert credentials(house.own.last()) == [(b"Authorization", b"Bearer " + CLIENTS_OWN)]
    assert house.ask(CHAT[0], house.auth, host="own.example", body=CHAT[1]).status == 200
    assert credentials(house.own.last()) == [], "it is for the upstream to say that a key is missing"
    house.own.forget()
    for fields in (("Authorization: Bearer KEY",), ("Flowstack-Auth: Bearer KEY", "Authorization: Bearer KEY"),
                   ("Flowstack-Auth: Bearer KEY", "api-key: KEY")):  # fmt: skip
        given = (each.replace("KEY", house.key) for each in fields)
        assert_own_error(house.ask(CHAT[0], *given, host="own.example", body=CHAT[1]), 401, "misplaced_key")
    assert house.own.requests == house.ends.upstream.requests == []


def used(house: House) -> set[bytes]:
    """Which key the upstream gets, on enough connections to meet both workers."""
    house.ends.upstream.forget()
    for _ in range(12):
        assert house.ask("GET /v1/models", house.auth).status == 200
    return {value for seen in house.ends.upstream.requests for _, value in credentials(seen)}


def complaints(house: House) -> int:
    return house.ends.proxy.log_text().count("a provider key was not reloaded")


def _so_many(house: House, wanted: int) -> bool:
    return complaints(house) >= wanted


def test_sighup_takes_a_new_key_over_and_a_bad_file_leaves_the_old_one_in_force(house: House) -> None:
    assert used(house) == {b"Bearer " + FIRST.encode()}
    write(house.secret, SECOND)
    house.ends.proxy.reload()
    assert used(house) == {b"Bearer " + SECOND.encode()}
    for text, mode in ((FIRST, 0o644), ("", 0o600), (f"{FIRST} {SECOND}\n", 0o600), (house.key, 0o600)):
        write(house.secret, text, mode)
        wanted = complaints(house) + 2
        assert house.ends.proxy.reload()["fault"] is None, "the keystore is another thing"
        eventually(partial(_so_many, house, wanted), "both workers say so")
        assert used(house) == {b"Bearer " + SECOND.encode()}
    house.secret.unlink()
    house.ends.proxy.reload()
    assert used(house) == {b"Bearer " + SECOND.encode()}
    write(house.secret, FIRST)
    house.ends.proxy.reload()
    assert used(house) == {b"Bearer " + FIRST.encode()}


def test_the_operator_s_key_is_in_nothing_that_flowstack_says_or_writes(house: House) -> None:
    house.ends.upstream.script = lambda seen: seen.link.offer(b"no http\r\n\r\n")
    said = house.ask(CHAT[0], house.auth, body=CHAT[1])
    assert_own_error(said, 502, "upstream_malformed")
    house.ends.upstream.forget()
    answers = [said, *(house.ask(line, house.auth) for line in ("GET /v1/models", "GET /v1/files", "GET /v1/%zz"))]
    with urlopen(f"http://127.0.0.1:{admin_port(house.ends.proxy)}/metrics", timeout=10) as metrics:
        shown = metrics.read()
    assert b"flowstack_" in shown
    for text in (shown, *(answer.raw_head + answer.body for answer in answers)):
        assert not leaked(text)
    assert_kept(house)
    for pid in (house.ends.proxy.pid, *children(house.ends.proxy.pid)):
        for name in ("cmdline", "environ"):
            assert not leaked(Path(f"/proc/{pid}/{name}").read_bytes())


def leaked(text: bytes) -> bool:
    return any(secret[4:].encode() in text for secret in (FIRST, SECOND))


def assert_kept(house: House) -> None:
    """No file that Flowstack wrote holds a provider's key."""
    found = list(contents(house.ends.proxy.folder))
    assert {"proxy.log", "reload.json", "flowstack.toml"} <= {path.name for path, _ in found}
    assert [path.name for path, data in found if leaked(data)] == []


# tests/keys/test_provider.py has every such file, and what is said of it.
@pytest.mark.parametrize(
    ("text", "mode", "says", "workers"),
    [(FIRST, 0o644, "chmod o=", 2), (f"{FIRST} {SECOND}\n", 0o600, "nothing else", 1)],
)
def test_a_file_that_cannot_be_used_ends_the_start_with_one_clear_line(
    tmp_path: Path, text: str, mode: int, says: str, workers: int
) -> None:
    secret = tmp_path / "openai.secret"
    write(secret, text, mode)
    Keystore(tmp_path / "keys")
    state = tmp_path / "state"
    state.mkdir()
    server = {"listen": ["tcp:0:interface=127.0.0.1"], "keys": str(tmp_path / "keys"), "state": str(state),
              "workers": workers}  # fmt: skip
    tables = {"server": server, "upstreams": {"openai": {"api_key_file": str(secret)}}}
    config = tmp_path / "flowstack.toml"
    config.write_text(to_toml(tables))
    done = invoke("twistd", "-n", "--pidfile=", "flowstack", "--config", config, cwd=tmp_path)
    said = done.stdout + done.stderr
    assert done.returncode == 1, said
    assert says in said and str(secret) in said and "api_key_file" in said
    assert "Traceback" not in said
    assert "listening" not in said
    assert not leaked(said.encode())


# SDKs that are given the Flowstack key as their api_key, and nothing else.


@pytest.fixture(scope="module")
def outcomes(
    stand_in: StandIn, sdks: Sdks, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], dict[str, Outcome]]]:
    folder = tmp_path_factory.mktemp("one-key-sdks")
    write(folder / "openai.secret", FIRST)
    settings = {"upstreams": {"openai": {"api_key_file": str(folder / "openai.secret")}}}
    proxy = Proxy(folder / "proxy", f"{stand_in.url}/v1", settings=settings)

    @remembered
    def run(sdk: str) -> dict[str, Outcome]:
        headers = {"X-Client-Tag": f"one-key-{sdk}"}
        plain = Attempt(name="chat", base_url=proxy.base_url, headers=headers, api_key=proxy.key)
        stream = Attempt(name="stream", base_url=proxy.base_url, headers=headers, api_key=proxy.key, stream=True)
        return sdks.attempts(sdk, [plain, stream])

    yield run
    proxy.stop()


@pytest.mark.parametrize("sdk", ["python-openai", "python-openai-0.28", "node-openai", "langchain", "node-ai-sdk"])
def test_an_sdk_needs_the_flowstack_key_alone(
    sdk: str, stand_in: StandIn, outcomes: Callable[[str], dict[str, Outcome]]
) -> None:
    found = outcomes(sdk)
    assert found["chat"].raised is None, found["chat"].raised
    assert found["chat"].value is not None
    assert found["stream"].raised is None and found["stream"].pieces, found["stream"]
    seen = stand_in.seen(f"one-key-{sdk}")
    assert len(seen) == 2
    for record in seen:
        assert [value for name, value in record["headers"] if name.lower() == "authorization"] == [f"Bearer {FIRST}"]
        assert "fsk-" not in record["head"]

"""Client secrets: a browser that comes with one alone is charged to the key that made it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from flowstack.config import Upstream
from flowstack.keys.client_secrets import LONGEST, ClientSecrets, prune_secrets
from tests.relay.lab import KEY, NOW, Answer, Lab, answer
from tests.relay.sockets import OPENING, REALTIME, Duet

MAKE = b"POST /v1/realtime/client_secrets HTTP/1.1"
JSON = b"Content-Type: application/json"
SECRET = "ek_0123456789abcdef0123456789abcdef"
EK = SECRET.encode()
TWO = (Upstream(base_url="http://one.example/v1", name="one", default=True),
       Upstream(base_url="http://two.example/v1", name="two", hosts=("two.test",)))  # fmt: skip


def made(lab: Lab, body: dict[str, Any] | None = None, status: bytes = b"200 OK") -> Answer:
    """Make one through Flowstack."""
    client = lab.ask(MAKE, JSON, b"Content-Length: 2", body=b"{}")
    if body is None:
        body = {"value": SECRET, "expires_at": int(NOW) + 600, "session": {"type": "realtime", "model": "gpt-realtime"}}
    text = orjson.dumps(body)
    head = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (status, len(text))
    lab.upstreams[-1].take()
    lab.upstreams[-1].send(head + text)
    return answer(client)


def bearer(secret: bytes = EK) -> bytes:
    return b"Authorization: Bearer " + secret


@pytest.mark.parametrize(
    "body",
    [
        None,
        {"id": "sess_1", "client_secret": {"value": SECRET, "expires_at": int(NOW) + 60}},
        {"session": {"instructions": "x" * 20_000}, "value": SECRET, "expires_at": int(NOW) + 60},
    ],
    ids=["today's", "the beta's", "a long one"],
)
@pytest.mark.parametrize("way", ["header", "subprotocol"])
def test_a_websocket_with_a_secret_alone_is_charged_to_the_key_that_made_it(body: Any, way: str) -> None:
    lab = Lab()
    made(lab, body)
    lab.limiter.given.clear()
    shown = bearer() if way == "header" else b"Sec-WebSocket-Protocol: realtime, openai-insecure-api-key." + EK
    duet = Duet(lab, REALTIME, shown, auth=None)
    assert duet.head.startswith(b"HTTP/1.1 101")
    assert shown in duet.asked, "it goes on as it came"
    duet.client.transport.hang_up()
    assert (lab.rows[-1]["key_id"], lab.rows[-1]["owner"]) == ("k1", "alice@example.com")
    assert lab.limiter.reserved == 1


def test_it_goes_on_as_it_came_where_the_operator_holds_the_providers_key_too() -> None:
    lab = Lab(provider_keys={"openai": (b"sk-operators",)})
    lab.keys.add(KEY, endpoints=("/v1/realtime*",))
    made(lab)
    duet = Duet(lab, REALTIME, bearer(), auth=None)
    assert bearer() in duet.asked
    assert b"sk-operators" not in duet.asked


def test_a_call_may_be_begun_with_it_and_nothing_else_done() -> None:
    lab = Lab()
    made(lab)
    sdp = b"Content-Type: application/sdp"
    lab.ask(b"POST /v1/realtime/calls HTTP/1.1", sdp, b"Content-Length: 3", bearer(), body=b"v=0", auth=None)
    assert bearer() in lab.upstreams[-1].take()
    refused = answer(lab.ask(b"GET /v1/models HTTP/1.1", bearer(), auth=None))
    assert (refused.status, refused.error["code"]) == (403, "endpoint_not_allowed")


@pytest.mark.parametrize("what", ["unknown", "expired", "refused", "key removed", "key disabled"])
def test_one_that_does_not_count_is_refused(what: str) -> None:
    lab = Lab()
    if what != "unknown":
        made(lab, status=b"403 Forbidden" if what == "refused" else b"200 OK")
    if what == "expired":
        lab.turns.advance(601)
    if what == "key removed":
        lab.keys.keys.clear()
    if what == "key disabled":
        lab.keys.add(KEY, disabled=True)
    lab.keys.generation += 1
    before = len(lab.upstreams) if lab.providers["openai"].peers else 0
    client = lab.client()
    client.send(b"\r\n".join([b"GET /v1/realtime HTTP/1.1", b"Host: flowstack.example", *OPENING, bearer(), b"", b""]))
    refused = answer(client)
    assert refused.status == 401
    assert "ek_0" not in refused.error["message"]
    assert len(lab.providers["openai"].peers) == before


def test_it_counts_at_the_upstream_that_made_it_alone() -> None:
    lab = Lab(upstreams=TWO)
    lab.secrets.remember(SECRET, lab.key.digest, "one", None)
    client = lab.client()
    client.send(
        b"POST /v1/realtime/calls HTTP/1.1\r\nHost: two.test\r\n" + bearer() + b"\r\nContent-Length: 0\r\n\r\n"
    )
    assert answer(client).error["code"] == "endpoint_not_allowed"


def test_the_secret_is_in_no_row_and_no_file(tmp_path: Path) -> None:
    lab = Lab(real=lambda lab: {"secrets": ClientSecrets(tmp_path / "secrets", lab.wall, lab.turns.clock.seconds)})
    made(lab)
    lab.ask(b"GET /v1/realtime/x HTTP/1.1", b"User-Agent: " + EK, bearer(), auth=None)
    assert EK not in repr(lab.rows).encode()
    (file,) = (tmp_path / "secrets").iterdir()
    assert EK not in file.read_bytes()
    assert EK.decode() not in file.name
    assert (file.stat().st_mode & 0o777, (tmp_path / "secrets").stat().st_mode & 0o777) == (0o600, 0o700)


def test_what_one_worker_saw_all_know_until_it_expires(tmp_path: Path) -> None:
    now = [NOW]
    one, other = (ClientSecrets(tmp_path / "secrets", lambda: now[0], lambda: now[0]) for _ in range(2))
    one.remember(SECRET, b"k" * 32, "openai", NOW + 60)
    one.remember(SECRET + "x", b"k" * 32, "openai", NOW + 10**9)
    found = other.find(EK)
    assert found is not None
    assert (found.key, found.upstream) == (b"k" * 32, "openai")
    assert prune_secrets(tmp_path / "secrets", NOW + 59) == 0
    now[0] += 61
    assert other.find(EK) is None
    assert prune_secrets(tmp_path / "secrets", now[0]) == 1
    now[0] = NOW + LONGEST + 1
    assert other.find(EK + b"x") is None
    assert prune_secrets(tmp_path / "nothing", now[0]) == 0


def test_a_disk_that_takes_nothing_is_told_of_and_holds_nobody_up(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    secrets = ClientSecrets(tmp_path / "file" / "secrets", lambda: NOW, lambda: NOW)
    secrets.remember(SECRET, b"k" * 32, "openai", None)
    assert secrets.find(EK) is None


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b'{"key": "zz", "upstream": "a", "expires": 1}', b"\xff"])
def test_a_file_that_its_writer_did_not_finish_is_no_secret(tmp_path: Path, text: bytes) -> None:
    secrets = ClientSecrets(tmp_path, lambda: NOW, lambda: NOW)
    secrets.remember(SECRET, b"k" * 32, "openai", None)
    (file,) = tmp_path.iterdir()
    file.write_bytes(text)
    assert secrets.find(EK) is None


@pytest.mark.parametrize("expires", [-1e300, 1e300, -1.0, 0, float("nan"), float("-inf")])
def test_whatever_an_answer_says_of_its_end_the_request_has_its_row(tmp_path: Path, expires: float) -> None:
    secrets = ClientSecrets(tmp_path / "secrets", lambda: NOW, lambda: NOW)
    secrets.remember(SECRET, b"k" * 32, "openai", expires)
    assert (secrets.find(EK) is not None) is (expires == 1e300)


@pytest.mark.parametrize("field", [b"Api-Key: ", b"X-Api-Key: ", b"Authorization: Bearer "])
def test_no_flowstack_key_goes_to_the_provider_beside_a_secret(field: bytes) -> None:
    lab = Lab(provider_keys={"openai": (b"sk-operators",)})
    lab.keys.add(KEY, endpoints=("/v1/realtime*",))
    made(lab)
    before = len(lab.upstreams)
    client = lab.client()
    lines = [b"GET /v1/realtime?model=x HTTP/1.1", b"Host: flowstack.example", *OPENING, field + KEY]
    lines.append(b"Sec-WebSocket-Protocol: realtime, openai-insecure-api-key." + EK)
    client.send(b"\r\n".join([*lines, b"", b""]))
    assert KEY not in b"".join(peer.take() for peer in lab.upstreams)
    assert (answer(client).status, len(lab.upstreams)) == (401, before)

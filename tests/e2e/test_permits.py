"""What a key may not do never gets whole to the upstream, and what it may do passes byte for byte."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from attrs import Factory, define, field

from tests.e2e.crowd import CHAT, journal, once
from tests.e2e.live import PROVIDER_KEY, memory
from tests.e2e.processes import PATIENCE, Proxy, StandIn, StartProxy, eventually
from tests.e2e.raw import Answer, Client, Closed, assert_own_error, request
from tests.e2e.raw_upstream import OK, Front, Seen, front
from tests.e2e.sdk_runs import OPENAI_KEY, Sdks

pytestmark = pytest.mark.e2e

JSON = b"Content-Type: application/json"
FORM = b"Content-Type: multipart/form-data; boundary=between"
SPEECH = b"POST /v1/audio/transcriptions HTTP/1.1"
MIB = 1024 * 1024
ALLOWED = 32 * MIB
"""How far the proxy's resident memory may grow while it relays an upload of three times as much."""

KEYS = {
    "models": "models=gpt-4o*,whisper-*",
    "endpoints": "endpoints=POST:/v1/chat/*,/v1/models*",
    "upstreams": "upstreams=another",
    "here": "allow_ip=127.0.0.0/8,2001:db8::/32",
    "elsewhere": "allow_ip=192.0.2.0/24,::1",
    "batches": "models=gpt-4o* endpoints=/v1/batches",
    "budget": "budget=5usd/day",
}


@define
class House:
    """A proxy before an upstream on bare sockets, and a key for each thing to show."""

    ends: Front
    keys: dict[str, str] = field(repr=False)

    def ask(self, key: str, line: bytes, *fields: bytes, body: bytes = b"") -> Answer:
        """Send a request on a new connection."""
        length = (b"Content-Length: %d" % len(body),) if body else ()
        return once(self.ends.proxy.port, request(self.keys[key], line, *fields, *length, body=body))

    def assert_refused(self, key: str, answer: Answer, code: str) -> None:
        """It was refused, the ledger says so, and the upstream has no request of it."""
        assert_own_error(answer, 403, code)
        row = journal(self.ends.proxy, self.keys[key])[-1]
        assert row["request_id"] == answer.request_id
        assert (row["status"], row["error_code"], row["end"]) == (403, code, "refused")
        assert (row["attempts"], self.ends.upstream.requests) == (0, [])

    def assert_passed(self, answer: Answer, body: bytes = b"") -> None:
        """It was relayed, each byte of its body."""
        assert (answer.status, answer.body) == (200, b"ok"), answer.body
        assert self.ends.upstream.last().read_body() == body


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with front(tmp_path_factory.mktemp("permits"), base="/v1") as ends:
        keys = {name: ends.proxy.keystore.add(attributes) for name, attributes in KEYS.items()}
        assert ends.proxy.reload()["fault"] is None
        yield House(ends, keys)
        assert ends.upstream.faults == []


@pytest.fixture
def house(shared: House) -> House:
    shared.ends.upstream.forget()
    return shared


def body_for(model: str, filling: int = 10) -> bytes:
    """A chat completion as openai-python writes it: with the model last."""
    return orjson.dumps({"messages": [{"role": "user", "content": "a" * filling}], "model": model})


def form_for(model: str, filling: int = 10) -> bytes:
    """A transcription whose model comes after the file, which has a line that looks like a part of its own."""
    sound = b"\r\n--betwixt\r\nContent-Disposition: form-data; name=model\r\n\r\ngpt-4o\r\n" + b"R" * filling
    return (
        b'--between\r\nContent-Disposition: form-data; name="file"; filename="talk.wav"\r\n'
        b"Content-Type: audio/wav\r\n\r\n" + sound + b"\r\n"
        b'--between\r\nContent-Disposition: form-data; name="model"\r\n\r\n' + model.encode() + b"\r\n--between--\r\n"
    )


Framed = Callable[[bytes, bytes], list[bytes]]
"""Makes of a head and a body what is written, piece by piece."""


def with_length(head: bytes, body: bytes) -> bytes:
    return head.replace(b"\r\n\r\n", b"\r\nContent-Length: %d\r\n\r\n" % len(body))


def in_one(head: bytes, body: bytes) -> list[bytes]:
    return [with_length(head, body) + body]


def in_pieces(head: bytes, body: bytes) -> list[bytes]:
    step = max(1, len(body) // 50)
    return [with_length(head, body), *(body[at : at + step] for at in range(0, len(body), step))]


def in_chunks(head: bytes, body: bytes) -> list[bytes]:
    size = max(1, len(body) // 200)
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    coded = head.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n")
    return [coded, *(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces), b"0\r\n\r\n"]


KINDS = pytest.mark.parametrize(
    ("line", "kind", "make", "allowed", "refused"),
    [(CHAT, JSON, body_for, "gpt-4o-mini", "o1"), (SPEECH, FORM, form_for, "whisper-1", "tts-1")],
    ids=["json", "multipart"],
)


@KINDS
def test_a_body_that_comes_with_its_head_is_refused_before_the_upstream_hears_of_it(
    house: House, line: bytes, kind: bytes, make: Callable[[str], bytes], allowed: str, refused: str
) -> None:
    house.assert_refused("models", house.ask("models", line, kind, body=make(refused)), "model_not_allowed")
    assert journal(house.ends.proxy, house.keys["models"])[-1]["model_requested"] == refused
    house.assert_passed(house.ask("models", line, kind, body=make(allowed)), make(allowed))
    assert journal(house.ends.proxy, house.keys["models"])[-1]["model_requested"] == allowed


def test_a_form_that_two_servers_may_read_differently_is_refused(house: House) -> None:
    form = form_for("whisper-1")
    twice = form.replace(b"--between--", form.replace(b'"model"', b'"Model[]"'))
    for kind, body in (
        (b'Content-Type: multipart/form-data; x="; boundary=other"; boundary=between', form),
        (b"Content-Type: multipart/form-data; boundary=between, multipart/form-data; boundary=other", form),
        (b"Content-Type: application/x-www-form-urlencoded", b"model=whisper-1"),
        (FORM, twice),
        (FORM, b"\r\n" + form),
    ):
        house.assert_refused("models", house.ask("models", SPEECH, kind, body=body), "model_not_allowed")
        house.assert_passed(house.ask("here", SPEECH, kind, body=body), body)
        house.ends.upstream.forget()


@define
class Watch:
    """Takes what comes of a body, and remembers whether the connection ended before it."""

    seen: Seen | None = None
    cut: bool = False
    ended: threading.Event = Factory(threading.Event)

    def __call__(self, seen: Seen) -> None:
        """The script."""
        self.seen = seen
        try:
            seen.read_body()
        except Closed:
            self.cut = True
            raise
        finally:
            self.ended.set()
        seen.link.offer(OK)

    def came(self, size: int) -> bool:
        """Whether so many bytes have come."""
        return self.seen is not None and len(self.seen.link.received) >= size


@pytest.mark.parametrize("framed", [in_one, in_pieces, in_chunks])
@pytest.mark.parametrize("filling", [10, 1_000_000])
@KINDS
def test_the_end_of_a_body_whose_model_is_not_allowed_never_reaches_the_upstream(
    house: House, framed: Framed, filling: int, line: bytes, kind: bytes, make: Callable[[str, int], bytes],
    allowed: str, refused: str,
) -> None:  # fmt: skip
    # One that was thrown away with its connection may be read after the next has come, so each bears its name.
    watches = {b"refused": Watch(), b"allowed": Watch()}
    house.ends.upstream.script = lambda seen: watches[seen.all(b"x-exchange")[0]](seen)

    def run(name: bytes, body: bytes) -> Answer:
        watch = watches[name]
        pieces = framed(request(house.keys["models"], line, kind, b"X-Exchange: " + name), body)
        with house.ends.client() as client:
            client.send(*pieces[:-5])
            if filling > 10 and len(pieces) > 5:
                eventually(lambda: watch.came(500_000), "the body is on its way before its model is known")
            client.send(*pieces[-5:])
            return client.answer()

    answer = run(b"refused", make(refused, filling))
    assert_own_error(answer, 403, "model_not_allowed")
    row = journal(house.ends.proxy, house.keys["models"])[-1]
    assert (row["error_code"], row["end"], row["model_requested"]) == ("model_not_allowed", "refused", refused)
    answer = run(b"allowed", make(allowed, filling))
    assert (answer.status, answer.body) == (200, b"ok"), answer.body
    passed, watch = watches[b"allowed"].seen, watches[b"refused"]
    assert passed is not None and passed.body == make(allowed, filling)
    # Where even its head was not sent on, or was thrown away with the connection, the upstream has seen nothing.
    if (seen := watch.seen) is not None:
        assert watch.ended.wait(PATIENCE), "the upstream's connection is ended"
        assert watch.cut and seen.body is None, "it has no whole request"


@pytest.mark.parametrize(
    ("fields", "body"),
    [
        ((JSON,), b'{"model":"gpt-4o","model":"o1"}'),
        ((JSON,), b'{"model":"gpt-4o","\\u006dodel":"o1"}'),
        ((JSON,), b'{"model":"\\u006f1","messages":[]}'),
        ((JSON,), b'{"a":{"model":"gpt-4o"}}'),
        ((JSON,), b'{"model":["gpt-4o"]}'),
        ((JSON,), b'\xef\xbb\xbf{"model":"o1"}'),
        ((JSON,), b'{"model":"gpt-4o"}{"model":"o1"}'),
        ((JSON, b"Content-Encoding: gzip"), b'{"model":"gpt-4o"}'),
        ((FORM,), b'{"model":"gpt-4o"}'),
        ((JSON, FORM), b'{"model":"gpt-4o"}'),
        ((), b""),
    ],
    ids=["twice", "twice, escaped", "escaped", "nested", "list", "BOM", "two", "coded", "no form", "two types", "none"],
)  # fmt: skip
def test_a_body_whose_model_is_not_plain_to_every_reader_is_refused(
    house: House, fields: tuple[bytes, ...], body: bytes
) -> None:
    house.assert_refused("models", house.ask("models", CHAT, *fields, body=body), "model_not_allowed")


def test_a_model_in_the_path_counts_too(house: House) -> None:
    for path in (b"models/o1", b"models/%6f1", b"models/ft:o1:acme"):
        house.assert_refused("models", house.ask("models", b"GET /v1/%b HTTP/1.1" % path), "model_not_allowed")
    house.assert_passed(house.ask("models", b"GET /v1/models/gpt-4o-mini HTTP/1.1"))
    house.assert_passed(house.ask("models", b"GET /v1/models HTTP/1.1"))


def test_only_the_endpoints_that_a_key_names_are_open(house: House) -> None:
    for line in (b"GET /v1/chat/completions", b"POST /v1/embeddings", b"GET /v1/files", b"POST /v1/chat/../files",
                 b"POST /v1/chat/%2e%2e/files", b"DELETE /v1/chat/completions/x",
                 b"POST /v1/chat%2fcompletions", b"POST /v1/chat//completions"):  # fmt: skip
        answer = house.ask("endpoints", line + b" HTTP/1.1")
        if b".." in line or b"%2e" in line:
            assert_own_error(answer, 400, "malformed_request")
            assert house.ends.upstream.requests == []
        else:
            house.assert_refused("endpoints", answer, "endpoint_not_allowed")
    body = body_for("anything")
    house.assert_passed(house.ask("endpoints", CHAT, JSON, body=body), body)
    house.assert_passed(house.ask("endpoints", b"GET /v1/models?limit=1 HTTP/1.1"))


def test_only_from_the_addresses_that_a_key_names_it_works(house: House) -> None:
    for field_line in (b"X-Forwarded-For: 192.0.2.1", b"Forwarded: for=192.0.2.1", b"X-Real-IP: 192.0.2.1"):
        answer = house.ask("elsewhere", b"GET /v1/models HTTP/1.1", field_line)
        house.assert_refused("elsewhere", answer, "address_not_allowed")
    house.assert_passed(house.ask("here", b"GET /v1/models HTTP/1.1"))


def test_only_the_upstreams_that_a_key_names_are_open(house: House) -> None:
    house.assert_refused("upstreams", house.ask("upstreams", b"GET /v1/models HTTP/1.1"), "upstream_not_allowed")


HIDDEN = (b"batches", b"fine_tuning/jobs", b"evals", b"threads/runs", b"threads/t/runs", b"realtime/sessions",
          b"realtime/client_secrets", b"assistants", b"videos", b"something/new")  # fmt: skip


@pytest.mark.parametrize("key", ["models", "budget"])
def test_work_whose_model_or_cost_cannot_be_seen_is_closed_to_a_limited_key(house: House, key: str) -> None:
    for path in HIDDEN:
        answer = house.ask(key, b"POST /v1/%b HTTP/1.1" % path, JSON, body=b'{"model":"gpt-4o"}')
        house.assert_refused(key, answer, "endpoint_not_allowed")
    stored = b'{"model":"gpt-4o","prompt":{"id":"pmpt_1"}}'
    answer = house.ask(key, b"POST /v1/responses HTTP/1.1", JSON, body=stored)
    house.assert_refused(key, answer, "endpoint_not_allowed")


def test_work_that_cannot_be_seen_is_open_where_the_key_names_it(house: House) -> None:
    body = b'{"input_file_id":"file-1","endpoint":"/v1/chat/completions"}'
    house.assert_passed(house.ask("batches", b"POST /v1/batches HTTP/1.1", JSON, body=body), body)


def test_a_refused_body_that_was_announced_gets_no_100_and_the_connection_ends(house: House) -> None:
    with house.ends.client() as client:
        client.send(request(house.keys["endpoints"], b"POST /v1/embeddings HTTP/1.1", JSON, b"Content-Length: 5000",
                            b"Expect: 100-continue"))  # fmt: skip
        answer = client.answer()
        assert answer.interim == []
        assert_own_error(answer, 403, "endpoint_not_allowed")
        assert client.to_the_end() == (b"", False)


# Large uploads, by way of the stand-in, which keeps no body.


def upload(proxy: Proxy, key: str, model: str, size: int, tag: str, line: bytes = CHAT) -> tuple[Answer, str]:
    """Send a chat completion of this many bytes and little more, its model last; the answer, and the body's SHA-256."""
    auth = b"Authorization: Bearer " + PROVIDER_KEY.encode()
    head, tail = b'{"messages":[{"role":"user","content":"', b'"}],"model":"%b"}' % model.encode()
    block = bytes(range(35, 91)) * 1024  # neither quotes nor backslashes
    count = size // len(block)
    length = len(head) + count * len(block) + len(tail)
    digest = hashlib.sha256(head)
    with Client(proxy.port, limit=60) as client:
        fields = (JSON, b"Content-Length: %d" % length, b"Stand-In: sink", b"X-Client-Tag: " + tag.encode(), auth)
        client.send(request(key, line, *fields), head)
        for _ in range(count):
            client.send(block)
            digest.update(block)
        client.send(tail)
        digest.update(tail)
        return client.answer(), digest.hexdigest()


def test_an_upload_of_100_mb_stays_out_of_memory_whether_its_model_is_allowed_or_not(
    start_proxy: StartProxy, stand_in: StandIn, tmp_path: Path
) -> None:
    proxy = start_proxy()
    key = proxy.keystore.add("models=gpt-4o* budget=1000usd/day tpm=100000000 inject_usage=off")
    assert proxy.reload()["fault"] is None
    tag = "upload"
    assert upload(proxy, key, "gpt-4o", 3 * MIB, f"{tag}-warm")[0].status == 200
    before, _ = memory(proxy.pid)
    answer, digest = upload(proxy, key, "gpt-4o", 100 * MIB, f"{tag}-allowed")
    assert answer.status == 200
    assert orjson.loads(answer.body)["sha256"] == digest
    assert_own_error(upload(proxy, key, "o1", 100 * MIB, f"{tag}-refused")[0], 403, "model_not_allowed")
    grown = memory(proxy.pid)[1] - before
    assert grown <= ALLOWED, f"{grown / MIB:.1f} MiB more than the {before / MIB:.1f} MiB before"

    def gone() -> list[dict[str, Any]]:
        return [seen for seen in stand_in.seen(f"{tag}-refused") if seen["end"] != "open"]

    (seen,) = eventually(gone, "the upstream sees the end of the connection")
    assert (seen["end"], seen["body_complete"]) == ("client_gone", False)
    # What lay in the sockets' buffers is gone with the connection.
    assert seen["body_bytes"] > 60 * MIB, "it was streamed"


PROGRAM = """
from openai import OpenAI, PermissionDeniedError
openai = OpenAI(base_url={base_url!r}, api_key={api_key!r}, default_headers={headers!r}, max_retries=3)
text = "a long prompt, " * 1_400_000
for model in ("gpt-4o-mini", "o1"):
    try:
        # Its own methods put the model first.
        answer = openai.post(
            "/chat/completions",
            cast_to=object,
            body={{"messages": [{{"role": "user", "content": text}}], "model": model}},
            options={{"headers": {{"Stand-In": "sink", "X-Client-Tag": "sdk-" + model}}}},
        )
        print(model, answer["bytes"] > 20_000_000)
    except PermissionDeniedError as error:
        print(model, error.code)
"""


def test_openai_python_is_refused_a_model_that_it_names_behind_20_mb(
    start_proxy: StartProxy, stand_in: StandIn, sdks: Sdks
) -> None:
    proxy = start_proxy()
    key = proxy.keystore.add("models=gpt-4o*")
    assert proxy.reload()["fault"] is None
    headers = {"Flowstack-Auth": f"Bearer {key}"}
    text = PROGRAM.format(base_url=proxy.base_url, api_key=OPENAI_KEY, headers=headers)
    assert sdks.program("python-openai", text) == "gpt-4o-mini True\no1 model_not_allowed\n"
    allowed, refused = journal(proxy, key)
    assert (allowed["error_code"], refused["error_code"]) == (None, "model_not_allowed")
    assert refused["bytes_in"] == 21_000_056, "it was judged when its model had come"
    assert [seen["body_complete"] for seen in stand_in.seen("sdk-gpt-4o-mini")] == [True]
    # It hears of the end after the client does.
    eventually(lambda: [seen["body_complete"] for seen in stand_in.seen("sdk-o1")] == [False], "it is cut")

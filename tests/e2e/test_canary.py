"""Keys go through every way that a request, a reload or a command can end, and are then found nowhere.

One body is exempt: what the upstream answers is relayed as it is, so a key that the upstream itself repeats in its
answer comes back to the client that sent it. Flowstack's own words, files and processes hold none.
"""

from __future__ import annotations

import base64
import secrets
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from urllib.parse import quote

import pytest

from flowstack.ledger.schema import DIMENSIONS
from tests.e2e.leaks import assert_kept, leaks, own_words
from tests.e2e.processes import contents, eventually, invoke
from tests.e2e.raw import Answer, Client, Closed
from tests.e2e.raw_upstream import Seen, reply
from tests.e2e.test_metrics import OPENMETRICS
from tests.e2e.test_workers import admin_port
from tests.e2e.troubles import CHAT, OK_JSON, Scene, drain, hold, scene

pytestmark = pytest.mark.e2e

UPLOAD = b"POST /v1/files HTTP/1.1"


@pytest.fixture(scope="module", params=["json", "text"])
def stage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    key = "sk-proj-" + secrets.token_urlsafe(40)
    settings: dict[str, dict[str, object]] = {
        "server": {"max_request_bytes": 2000, "admin": "tcp:0:interface=127.0.0.1"},
        "log": {"format": request.param},
        "limits": {"rpm": 100_000, "max_parallel": 1000},
        "ledger": {"inject_usage": True},
    }
    with scene(tmp_path_factory.mktemp("canary"), key, **settings) as found:
        yield found


def settled(stage: Scene) -> None:
    """Wait until all that was to be written has been: a last request's line is in the request log."""
    stage.upstream.script = reply(OK_JSON)
    last = stage.ask(stage.request()).request_id
    path = stage.proxy.folder / "requests.jsonl"
    eventually(lambda: last in path.read_text(), "the last request's line")


def test_the_search_finds_what_it_should(stage: Scene) -> None:
    for what, secret in stage.secrets.items():
        for shown in (
            f"x{secret}x",
            secret[-14:],
            base64.b64encode(f":{secret}".encode()).decode(),
            secret.encode().hex(),
        ):
            assert what in leaks(stage, shown.encode()), (what, shown)
    assert leaks(stage, f"{stage.proxy.key[:16]} {stage.openai_key[:8]}".encode()) == []


def succeed(stage: Scene) -> None:
    stage.upstream.script = reply(OK_JSON)
    assert stage.ask(stage.request(CHAT, b"Content-Length: 2", body=b"{}")).status == 200
    seen = stage.upstream.last()
    assert seen.all(b"authorization") == [b"Bearer " + stage.openai_key.encode()]
    # Nor does the upstream learn of Flowstack's keys.
    for what in leaks(stage, seen.raw_head + seen.framed):
        assert what == "the provider's key"


def succeed_with_the_foreign_key(stage: Scene) -> None:
    stage.upstream.script = reply(OK_JSON)
    assert stage.ask(stage.request(key=stage.foreign)).status == 200


def alone(stage: Scene, *fields: bytes) -> bytes:
    """A request with no other key than what is in these fields."""
    return b"\r\n".join([CHAT, b"Host: flowstack.example", b"Content-Length: 2", *fields, b"", b"{}"])


ONE_STRING = (b"Authorization: Bearer %b~%b", b"api-key: %b~%b", b"X-Api-Key: %b~%b")


def succeed_with_both_in_one_string(stage: Scene) -> None:
    stage.upstream.script = reply(OK_JSON)
    theirs = stage.openai_key.encode()
    for ours in (stage.proxy.key, stage.foreign):
        for form in ONE_STRING:
            assert stage.ask(alone(stage, form % (ours.encode(), theirs))).status == 200
            seen = stage.upstream.last()
            name, _, value = (form % (b"", theirs)).replace(b"~", b"").partition(b": ")
            assert seen.all(name.lower()) == [value]
            assert leaks(stage, seen.raw_head) == ["the provider's key"]
        assert stage.ask(alone(stage, ONE_STRING[0] % (ours.encode(), b""))).status == 200
        assert leaks(stage, stage.upstream.last().raw_head) == []
    stage.upstream.script = reply(b"no http\r\n\r\n")
    assert stage.ask(alone(stage, ONE_STRING[0] % (stage.proxy.key.encode(), theirs))).status == 502


def be_refused_with_both_in_one_string(stage: Scene) -> None:
    stage.upstream.forget()
    theirs, ours = stage.openai_key.encode(), stage.proxy.key.encode()
    wrong = [one.encode() for one in (stage.unknown, stage.disabled, stage.expired, stage.proxy.key[:-1])]
    asked = [alone(stage, form % (one, theirs)) for form in ONE_STRING for one in wrong]
    asked += [alone(stage, form % (theirs, one)) for form in ONE_STRING for one in (*wrong, ours)]
    for one in (ours, stage.foreign.encode()):
        asked += [alone(stage, form.replace(b"~", b"%%7E") % (one, theirs)) for form in ONE_STRING]
        asked += [alone(stage, form % (one, one)) for form in ONE_STRING]
        asked.append(alone(stage, b"Authorization: Basic " + base64.b64encode(b"%b~%b:" % (one, theirs))))
        asked.append(alone(stage, b"Cookie: key=%b~%b" % (one, theirs)))
        asked.append(stage.request(b"GET /v1/x?api-key=%b~%b HTTP/1.1" % (one, theirs)))
        asked.append(stage.request(CHAT, ONE_STRING[1] % (stage.unknown.encode(), theirs)))
        asked.append(alone(stage, *[form % (one, theirs) for form in ONE_STRING], ONE_STRING[0] % (one, theirs)))
    for raw in asked:
        answer = stage.ask(raw)
        assert answer.status in (400, 401)
        assert leaks(stage, answer.raw_head + answer.body) == []
    assert stage.upstream.requests == []


def put_both_in_one_string_where_none_belongs(stage: Scene) -> None:
    stage.upstream.script = reply(OK_JSON)
    for ours in (stage.unknown[:-1], stage.foreign):
        both = f"{ours}~{stage.openai_key}"
        for text in (both, both.replace("~", "%7E"), "." * 400 + both):
            fields = (b"User-Agent: x " + text.encode(), b"Flowstack-Attribute-Both: " + text.encode())
            body = f'{{"model": "{text}", "messages": []}}'
            raw = stage.request(CHAT, *fields, b"Content-Type: application/json", length(body), body=body.encode())
            assert stage.ask(raw).status == 200
            target = f"GET /v1/files/{text.replace('fsk', 'Fsk')} HTTP/1.1"
            assert stage.ask(stage.request(target.encode())).status == 200


def stream(stage: Scene) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    stage.upstream.script = reply(head, b"9\r\ndata: 1\n\n\r\n", b"0\r\n\r\n", pause=0.02)
    assert stage.ask(stage.request()).body == b"data: 1\n\n"


def be_told_no_by_the_upstream(stage: Scene) -> None:
    words = f'{{"error": {{"message": "Incorrect API key provided: {stage.openai_key}"}}}}'.encode()
    stage.upstream.script = reply(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: %d\r\n\r\n%b" % (len(words), words))
    answer = stage.ask(stage.request())
    assert (answer.status, answer.body) == (401, words), "the upstream's own words come back as they are"
    assert leaks(stage, answer.raw_head) == []


def be_told_in_a_malformed_answer(stage: Scene) -> None:
    key = stage.openai_key.encode()
    for raw in (
        b"HTTP/1.1 200 " + key + b"\x00\r\n\r\n",
        b"HTTP/1.1 " + key + b" OK\r\n\r\n",
        key + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + key + b" : 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: " + key + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: " + key + b"\r\n\r\n",
    ):
        stage.upstream.script = reply(raw)
        answer = stage.ask(stage.request())
        assert (answer.status, leaks(stage, own_words(answer))) == (502, [])


def be_cut_by_the_upstream(stage: Scene) -> None:
    key = stage.openai_key.encode()
    for raw in (
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + key,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n" + key,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + key + b"\r\n",
    ):
        stage.upstream.script = reply(raw, close=True)
        with pytest.raises(Closed):
            stage.ask(stage.request())


def leave(stage: Scene) -> None:
    def begin(seen: Seen) -> None:
        seen.link.offer(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nbegun")
        hold(seen)

    key = stage.openai_key.encode()
    for script, wait in ((hold, b""), (begin, b"begun")):
        for part in (stage.request(), stage.request(UPLOAD, b"Content-Length: 900", body=key)):
            stage.upstream.forget()
            stage.upstream.script = script
            with Client(stage.proxy.port) as client:
                client.send(part)
                eventually(lambda: stage.upstream.requests, "the request goes upstream")
                if wait:
                    client.until(wait)
                client.abort()
    with Client(stage.proxy.port) as client:
        client.send(stage.request(CHAT, b"Content-Length: 900", body=key))  # what it asks for is waited for
        client.abort()


def leave_in_the_head(stage: Scene) -> None:
    raw = stage.request()
    for cut in range(20, len(raw), 7):
        with Client(stage.proxy.port) as client:
            client.send(raw[:cut])


def put_it_in_a_url(stage: Scene) -> None:
    stage.upstream.script = reply(OK_JSON)
    key = stage.openai_key
    for target in (f"/v1/x?api_key={key}", f"/v1/x?a=b&{quote(key)}", f"/v1/{key}/x"):
        assert stage.ask(stage.request(f"GET {target} HTTP/1.1".encode())).status == 200
        assert stage.upstream.last().target == target.encode(), "the target goes on untouched"
    for ours in (stage.foreign, stage.proxy.key, stage.unknown):
        assert stage.ask(stage.request(f"GET /v1/x?a={ours} HTTP/1.1".encode())).status == 401


def put_it_in_other_headers(stage: Scene) -> None:
    stage.upstream.script = reply(OK_JSON)
    key = stage.openai_key.encode()
    basic = base64.b64encode(b":" + key)
    for field in (b"Cookie: key=" + key, b"X-Key: " + key, b"Proxy-Authorization: Basic " + basic, b"Referer: " + key,
                  b"Sec-WebSocket-Protocol: realtime, openai-insecure-api-key." + key, b"User-Agent: curl/8 " + key,
                  b"Flowstack-Attribute-Auth: Bearer " + key,
                  b"Flowstack-Attribute-Key: " + stage.proxy.key.encode(), b"Flowstack-Attribute-" + key + b": x",
                  b"Flowstack-Attribute-" + stage.proxy.key.encode() + b": x"):  # fmt: skip
        assert stage.ask(stage.request(CHAT, field)).status == 200
    for ours in (stage.unknown.encode(), stage.proxy.key.encode()):
        for field in (b"User-Agent: " + ours, b"Cookie: key=" + ours, b"X-Key: " + base64.b64encode(b"x") + ours):
            assert stage.ask(stage.request(CHAT, field)).status == 401
    stage.upstream.script = reply(OK_JSON[:-6] + b"\r\nX-Request-Id: " + key + OK_JSON[-6:])
    assert stage.ask(stage.request()).one(b"x-request-id") == key


def put_it_in_bodies(stage: Scene) -> None:
    stage.upstream.script = reply(OK_JSON)
    for key in (stage.openai_key, stage.proxy.key, stage.unknown):
        escaped = "".join(f"\\u{ord(letter):04x}" for letter in key)
        for body in (
            f'{{"model": "{key}", "messages": []}}',
            f'{{"model": "gpt-4o {key} x", "stream": true, "service_tier": "{key}", "messages": []}}',
            f'{{"model": "{escaped}", "{escaped}": "{escaped}"}}',
            f'{{"model": ["{key}"], "user": "{key}", "{key}": {{"{key}": "{key}"}}}}',
            f'{{"model": "gpt-4o", "model": "{key}"',
        ):
            raw = stage.request(CHAT, b"Content-Type: application/json", length(body), body=body.encode())
            assert stage.ask(raw).status == 200
        form = f'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\n{key}\r\n--b--\r\n'
        line, kind = b"POST /v1/audio/transcriptions HTTP/1.1", b"Content-Type: multipart/form-data; boundary=b"
        assert stage.ask(stage.request(line, kind, length(form), body=form.encode())).status == 200


def put_it_where_text_is_cut_off(stage: Scene) -> None:
    stage.upstream.script = reply(OK_JSON)
    for key in (stage.openai_key, stage.proxy.key):
        for before in range(448, 513, 8):
            text = "." * before + key
            body = f'{{"model": "{text}", "messages": []}}'
            fields = (b"User-Agent: " + text.encode(), b"Flowstack-Attribute-Cut: " + text.encode())
            raw = stage.request(CHAT, *fields, b"Content-Type: application/json", length(body), body=body.encode())
            assert stage.ask(raw).status == (401 if key == stage.proxy.key else 200), "ours has no place in User-Agent"
            body = f'{{"model": "{text[448 - 64 :]}", "messages": []}}'
            raw = stage.request(CHAT, b"Content-Type: application/json", length(body), body=body.encode())
            assert stage.ask(raw).status == 200
    for before in range(448, 513, 8):
        target = f"GET /v1/{'.' * before}{stage.openai_key} HTTP/1.1"
        assert stage.ask(stage.request(target.encode())).status == 200


def be_given_it_for_a_model_by_the_upstream(stage: Scene) -> None:
    usage = '"usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}'
    for key in (stage.openai_key, stage.proxy.key):
        text = f'{{"id": "{key}", "model": "{key}", "service_tier": "{key}", "choices": [], {usage}}}'
        body = b'{"model": "gpt-4o", "stream": true, "messages": []}'
        raw = stage.request(CHAT, b"Content-Type: application/json", length(body.decode()), body=body)
        for kind, answer in (("application/json", text), ("text/event-stream", f"data: {text}\n\ndata: [DONE]\n\n")):
            head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(answer)}\r\n\r\n"
            stage.upstream.script = reply((head + answer).encode())
            assert stage.ask(raw).status == 200
    finished = f'{{"object": "response", "id": "{stage.openai_key}", "background": true, "status": "completed", '
    finished += f"{usage}}}"
    finished = finished.replace("prompt", "input").replace("completion_", "output_")
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(finished)}\r\n\r\n"
    begun = finished.replace("completed", "queued")
    stage.upstream.script = reply((head.replace(str(len(finished)), str(len(begun))) + begun).encode())
    body = b'{"model": "gpt-4o", "background": true, "input": "x"}'
    create = b"POST /v1/responses HTTP/1.1"
    raw = stage.request(create, b"Content-Type: application/json", length(body.decode()), body=body)
    for _ in range(2):  # of which one is settled, and the other stays open
        assert stage.ask(raw).status == 200
        stage.upstream.script = reply((head + finished).encode())
        assert stage.ask(stage.request(b"GET /v1/responses/resp_1 HTTP/1.1"), "GET").status == 200
        stage.upstream.script = reply((head.replace(str(len(finished)), str(len(begun))) + begun).encode())
    assert stage.ask(raw).status == 200


def length(body: str) -> bytes:
    """The field that announces a body."""
    return f"Content-Length: {len(body)}".encode()


def pipeline_it_before_garbage(stage: Scene) -> None:
    stage.upstream.script = reply(OK_JSON)
    with Client(stage.proxy.port) as client:
        client.offer(stage.request() + stage.proxy.key.encode() + b" " + stage.openai_key.encode() + b"\r\n\r\n")
        assert client.answer().status == 200
        assert leaks(stage, own_words(client.answer())) == []


def bad_lines(stage: Scene) -> list[str]:
    """Lines of a keystore by someone who put keys where their hashes or other things belong."""
    key = stage.proxy.key
    return [
        key,
        f"{key[4:16]} {key}",
        f"{key} sha256:{'0' * 64}",
        f"{key[4:16]} sha256:{key}",
        f"{key[4:16]} sha256:{'0' * 64} {key}",
        f"{key[4:16]} sha256:{'0' * 64} rpm={key}",
        f"{key[4:16]} sha256:{'0' * 64} {key}=1",
        f'{key[4:16]} sha256:{"0" * 64} owner="{key}',
        f"{key[4:16]} sha256:{'0' * 64} models={key} expires={stage.foreign}",
        f"{stage.foreign} {stage.foreign} {stage.openai_key}",
    ]


def reload_a_keystore_that_holds_it(stage: Scene) -> None:
    good = stage.proxy.keys_path.read_text()
    for line in bad_lines(stage):
        stage.proxy.keystore.replace(good + line + "\n")
        outcome = stage.proxy.reload()
        assert outcome["fault"], line.replace(stage.proxy.key, "KEY")
        assert outcome["keys"] == 4, "the old set stays in force"
    stage.proxy.keystore.replace(good)
    assert stage.proxy.reload()["fault"] is None


def use_the_commands_on_a_keystore_that_holds_it(stage: Scene) -> None:
    good = stage.proxy.keys_path.read_text()
    stage.proxy.keystore.replace(good + "\n".join(bad_lines(stage)) + "\n")
    assert_command_is_silent(stage, "check", "--config", str(stage.proxy.config_path), status=1)
    assert_command_is_silent(stage, "keys", "list", "--config", str(stage.proxy.config_path), status=1)
    words = ("twistd", "-n", "--pidfile=", "flowstack", "--config", stage.proxy.config_path)
    ended = invoke(*words, cwd=stage.proxy.folder)
    assert_silent(stage, ended, status=1)
    stage.proxy.keystore.replace(good)


def assert_silent(stage: Scene, ended: subprocess.CompletedProcess[str], status: int) -> None:
    """A command ended so, and printed no secret."""
    said = ended.stdout + ended.stderr
    assert leaks(stage, said.encode()) == []
    assert ended.returncode == status, said


def assert_command_is_silent(stage: Scene, *words: str, given: str = "", status: int) -> None:
    """A command ends so, and prints no secret."""
    assert_silent(stage, invoke("flowstack", *words, cwd=stage.proxy.folder, given=given), status)


def use_the_commands(stage: Scene) -> None:
    config = str(stage.proxy.config_path)
    assert_command_is_silent(stage, "check", "--config", config, status=0)
    for words in (["list"], ["list", "--json"]):
        assert_command_is_silent(stage, "keys", *words, "--config", config, status=0)
    for given, status in (
        (stage.proxy.key, 0),
        (stage.foreign, 0),
        (f"Bearer {stage.proxy.key}", 1),
        (stage.proxy.key[:-1], 1),
        (stage.unknown, 1),
        (stage.disabled, 1),
        (stage.expired, 1),
        (stage.openai_key, 1),
        (f"{stage.proxy.key} {stage.openai_key}", 1),
    ):
        assert_command_is_silent(stage, "keys", "verify", "--config", config, given=given, status=status)
    assert_command_is_silent(stage, "keys", "verify", stage.proxy.key, status=2)
    assert_command_is_silent(stage, "keys", "remove", "--config", config, stage.proxy.key, status=2)
    assert_command_is_silent(stage, "keys", "list", f"--{stage.proxy.key}", status=2)
    for words in (["keys"], ["check"], []):
        assert_command_is_silent(stage, *words, stage.proxy.key, status=2)
        assert_command_is_silent(stage, *words, stage.openai_key, status=2)


WAYS: list[Callable[[Scene], None]] = [
    succeed,
    succeed_with_the_foreign_key,
    succeed_with_both_in_one_string,
    be_refused_with_both_in_one_string,
    put_both_in_one_string_where_none_belongs,
    stream,
    be_told_no_by_the_upstream,
    be_told_in_a_malformed_answer,
    be_cut_by_the_upstream,
    leave,
    leave_in_the_head,
    put_it_in_a_url,
    put_it_in_other_headers,
    put_it_in_bodies,
    put_it_where_text_is_cut_off,
    be_given_it_for_a_model_by_the_upstream,
    pipeline_it_before_garbage,
    reload_a_keystore_that_holds_it,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_key_is_found_nowhere_after(stage: Scene, way: Callable[[Scene], None]) -> None:
    way(stage)
    settled(stage)
    assert_kept(stage)


@pytest.mark.parametrize(
    "way", [use_the_commands, use_the_commands_on_a_keystore_that_holds_it], ids=lambda way: way.__name__
)
def test_no_command_prints_a_key(stage: Scene, way: Callable[[Scene], None]) -> None:
    way(stage)
    assert_kept(stage)


KEPT = ("ledger/*.jsonl", "ledger.sqlite", "ledger.lag.json", "reload.json", "limits/counters", "open/*")
"""What the state directory holds by the end."""


def test_no_report_and_no_metric_shows_a_key_after_all_that(stage: Scene) -> None:
    for way in (put_it_in_a_url, put_it_in_other_headers, put_it_in_bodies, be_given_it_for_a_model_by_the_upstream):
        way(stage)
    settled(stage)
    eventually(lambda: asked_of_admin(stage, "/metrics").body.count(b"flowstack_requests_total{"), "metrics")
    for path in ("/metrics", "/healthz", "/readyz", f"/{stage.openai_key}"):
        for fields in ((), (f"Accept: {OPENMETRICS}",), (f"Authorization: Bearer {stage.proxy.key}",)):
            answer = asked_of_admin(stage, path, *fields)
            assert leaks(stage, answer.raw_head + answer.body) == []
    attributes = (f"attribute:{name}" for name in ("auth", "key", "cut", stage.openai_key))
    for names in ([*DIMENSIONS, "day"], attributes):
        by = ",".join(names)
        for form in ("table", "csv", "json"):
            words = ("usage", "--config", str(stage.proxy.config_path), "--by", by, "--format", form)
            assert_command_is_silent(stage, *words, status=0)
            asked_for = ("--where", f"model=gpt*,attribute:{stage.openai_key}={stage.openai_key}")
            assert_command_is_silent(stage, *words, *asked_for, status=2)  # whole keys are refused there
    assert_command_is_silent(stage, "usage", "--by", stage.openai_key, "--state", str(stage.proxy.state_path), status=2)
    assert_command_is_silent(stage, "usage", "--state", f"/tmp/{stage.openai_key}", status=1)
    assert_kept(stage)
    for pattern in KEPT:
        found = partial(lambda name: list(stage.proxy.state_path.glob(name)), pattern)
        eventually(found, f"something in {pattern}, or this shows nothing")


def asked_of_admin(stage: Scene, path: str, *fields: str) -> Answer:
    """What the admin listener answers."""
    with Client(admin_port(stage.proxy)) as client:
        return client.ask("\r\n".join([f"GET {path} HTTP/1.1", "Host: localhost", *fields, "", ""]).encode())


def test_a_key_is_found_nowhere_after_all_that_and_the_end_of_the_process(stage: Scene) -> None:
    settled(stage)
    assert_kept(stage)
    drain(stage)
    assert stage.proxy.wait() == 0
    for path, data in contents(stage.proxy.folder):
        assert leaks(stage, data) == [], f"{path.name} holds it"
    assert "Traceback" not in stage.proxy.log_text()

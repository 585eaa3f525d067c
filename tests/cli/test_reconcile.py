"""``flowstack reconcile`` as a process, against the stand-in and against providers that behave badly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import pytest_twisted
from attrs import define, field
from click.testing import CliRunner
from twisted.internet.defer import Deferred

from flowstack.cli.main import main
from flowstack.cli.organization import Fault, Organization
from tests.ledger.journals import write
from tests.ledger.samples import row
from tests.testing.wire import Client, Process

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
PROGRAM = [sys.executable, "-c", "from flowstack.cli.main import main; main()"]
ADMIN = "sk-admin-CanaryCanaryCanary0123456789"
PATIENCE = 120


@define
class Place:
    """A state directory and an admin key's file."""

    folder: Path

    @property
    def key(self) -> Path:
        return self.folder / "admin.key"

    def rows(self, *some: Any) -> None:
        write(self.folder / "state" / "ledger" / "2026-11-23.w0.jsonl", some)

    def reconcile(self, url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [*PROGRAM, "reconcile", "--state", str(self.folder / "state"), "--admin-key-file", str(self.key),
                   "--url", f"{url}/v1", *arguments]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False, env=ENVIRONMENT)
        assert ADMIN not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done


@pytest.fixture
def place(tmp_path: Path) -> Place:
    (tmp_path / "state").mkdir()
    found = Place(tmp_path)
    found.key.write_text(f"{ADMIN}\n")
    found.key.chmod(0o600)
    found.rows(row(1, started_at=datetime.now(UTC)))
    return found


def test_the_ledger_is_held_against_what_the_stand_in_served(place: Place) -> None:
    """Of three requests the ledger knows two; a third went past it."""

    def asked(*arguments: str) -> tuple[int, dict[str, Any]]:
        done = place.reconcile(url, "--until", "now", "--since", "2d", "--json", *arguments)
        assert done.returncode in (0, 3), done.stderr
        return done.returncode, json.loads(done.stdout)

    with Process("--listen", "tcp:0") as standin:
        client, url = Client(standin.port), f"http://127.0.0.1:{standin.port}"
        (place.folder / "state" / "ledger" / "2026-11-23.w0.jsonl").unlink()
        served = {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": None, "cost_usd": 3.75e-05,
                  "started_at": datetime.now(UTC)}  # fmt: skip
        place.rows(row(1, **served, attributes={"project": "proj_a"}), row(2, **served))
        assert client.chat("OpenAI-Project: proj_a").status == client.chat().status == 200
        status, found = asked("--by", "model")
        assert (status, found["captured"], found["enough"]) == (0, 1.0, True)
        (line,) = found["lines"]
        assert line["model"] == "gpt-4o-2024-08-06"
        assert line["ledger"]["total_tokens"] == line["provider"]["total_tokens"] == 12
        assert line["ledger"]["cost_usd"] == line["provider"]["cost_usd"] == 7.5e-05
        assert (line["drift_usd"], line["drift_share"]) == (0.0, 0.0)
        assert any("not complete" in note for note in found["notes"])  # today's
        status, found = asked("--by", "project", "--project-attribute", "Project")
        assert {one["project"]: one["captured_tokens"] for one in found["lines"]} == {
            "proj_a": 1.0, "proj_default": 0.0, None: None,
        }  # fmt: skip
        status, found = asked("--project", "proj_a", "--where", "attribute:project=proj_a")
        assert (status, found["total"]["provider"]["total_tokens"]) == (0, 6)
        client.chat()
        status, found = asked()
        assert (status, found["captured"], found["enough"]) == (3, pytest.approx(2 / 3), False)
        assert asked("--min-capture", "0.5")[0] == 0
        text = place.reconcile(url, "--until", "now")
        assert text.returncode == 3
        assert text.stdout.endswith("\nCaptured: 66.67%, less than 98.00%.\n")
        assert "the provider's figures come late" in text.stderr
        place.key.write_text("sk-no-admin")
        refused = place.reconcile(url)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "refused the key (401): it must be an admin key" in refused.stderr


# Providers that behave badly


@define
class Provider:
    """Answers by a script; what it was asked is in ``asked``: the path, its query, the Authorization field."""

    url: str = ""
    asked: list[tuple[str, dict[str, list[str]], str | None]] = field(factory=list)


Answer = Callable[[BaseHTTPRequestHandler, int], None]


@contextmanager
def serving(answer: Answer) -> Iterator[Provider]:
    """:param answer: is given the handler, and how many were asked before."""
    provider = Provider()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            provider.asked.append((parts.path, parse_qs(parts.query), self.headers.get("Authorization")))
            answer(self, len(provider.asked) - 1)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    provider.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield provider
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def send(handler: BaseHTTPRequestHandler, status: int, value: Any, **fields: str) -> None:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    handler.send_response(status)
    for name, text in {"Content-Length": str(len(body)), **fields}.items():
        handler.send_header(name.replace("_", "-"), text)
    handler.end_headers()
    handler.wfile.write(body)


EMPTY = {"object": "page", "data": [], "has_more": False, "next_page": None}


def test_pages_are_followed_to_the_last(place: Place) -> None:
    today = int(time.time()) // 86_400 * 86_400

    def answer(handler: BaseHTTPRequestHandler, number: int) -> None:
        if not handler.path.startswith("/v1/organization/usage/completions"):
            return send(handler, 200, EMPTY)
        at = int(parse_qs(urlsplit(handler.path).query).get("page", ["0"])[0])
        results = [{"input_tokens": 100, "output_tokens": 30, "num_model_requests": 1, "model": "m"}]
        day = {"object": "bucket", "start_time": today - at * 86_400, "results": results}
        send(handler, 200, EMPTY | {"data": [day], "has_more": at < 2, "next_page": str(at + 1) if at < 2 else None})

    with serving(answer) as provider:
        done = place.reconcile(provider.url, "--until", "now", "--project", "p1", "--project", "p2", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["total"]["provider"]["total_tokens"] == 390
    assert len([1 for one in found["lines"] if one["provider"]["total_tokens"]]) == 3
    assert [path for path, query, _ in provider.asked if "page" not in query] == [
        "/v1/organization/costs",
        *(f"/v1/organization/usage/{kind}" for kind in ("completions", "embeddings", "moderations", "images",
          "audio_speeches", "audio_transcriptions", "vector_stores", "code_interpreter_sessions")),
    ]  # fmt: skip
    _, query, credential = provider.asked[0]
    assert credential == f"Bearer {ADMIN}"
    assert query["group_by"] == ["project_id", "line_item"]
    assert (query["bucket_width"], query["project_ids"]) == (["1d"], ["p1", "p2"])
    assert (int(query["end_time"][0]) - int(query["start_time"][0])) == 7 * 86_400


def test_a_busy_provider_is_asked_again_when_it_says(place: Place) -> None:
    def answer(handler: BaseHTTPRequestHandler, number: int) -> None:
        if number < 2:
            return send(handler, (429, 503)[number], {"error": {"code": "rate_limit_exceeded"}}, retry_after_ms="1")
        send(handler, 200, EMPTY)

    with serving(answer) as provider:
        done = place.reconcile(provider.url, "--until", "now")
    assert len(provider.asked) == 2 + 9
    assert done.returncode == 3  # the provider says nothing, and the ledger does
    assert "Captured: unknown. The provider has no figures for these days, the ledger has." in done.stdout


def busy(handler: BaseHTTPRequestHandler, number: int) -> None:
    send(handler, 500, {"error": {"code": "x", "message": ADMIN}}, retry_after_ms="1")


def patient(handler: BaseHTTPRequestHandler, number: int) -> None:
    send(handler, 429, {}, retry_after="9999")


def telling(handler: BaseHTTPRequestHandler, number: int) -> None:
    send(handler, 403, {"error": {"code": ADMIN, "message": f"{ADMIN} may not"}})


def circling(handler: BaseHTTPRequestHandler, number: int) -> None:
    send(handler, 200, EMPTY | {"has_more": True, "next_page": "again"})


def dripping(handler: BaseHTTPRequestHandler, number: int) -> None:
    handler.send_response(200)
    handler.end_headers()
    try:
        for _ in range(600):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.05)
    except OSError:
        pass


BAD: dict[str, tuple[Answer, str]] = {
    "it fails on": (busy, "it answered 500, x; tried 5 times"),
    "it wants to be asked much later": (patient, "has not answered all within 2 s (the last try: it answered 429)"),
    "it drips": (dripping, "has not answered all within 2 s (the last try: no answer within "),
    "it repeats the key": (telling, "refused the key (403): it must be an admin key"),
    "it goes round in a circle": (circling, "has pages in a circle"),
    "no such endpoint": (lambda handler, _: send(handler, 404, {}), "answered 404, expected 200"),
    "no JSON": (lambda handler, _: send(handler, 200, b"<html>"), "answered something that is not JSON"),
    "nested": (lambda handler, _: send(handler, 200, b"[" * 100_000), "answered something that is not JSON"),
    "no page": (lambda handler, _: send(handler, 200, {"data": 5}), "expected a page with `data`"),
}


@pytest.mark.parametrize("name", BAD)
@pytest_twisted.ensureDeferred
async def test_what_cannot_be_found_out_is_a_fault_that_says_why(name: str) -> None:
    from twisted.internet import reactor

    answer, words = BAD[name]
    with serving(answer) as provider:
        seconds = 2.0 if "2 s" in words else float(PATIENCE)
        organization = Organization(reactor, f"{provider.url}/v1", ADMIN.encode(), seconds)
        with pytest.raises(Fault) as caught:
            await Deferred.fromCoroutine(organization.billed(0, 86_400))
    assert words in str(caught.value)
    assert ADMIN not in str(caught.value)


def test_a_fault_is_told_in_a_line_with_status_1(place: Place) -> None:
    with serving(telling) as provider:
        done = place.reconcile(provider.url)
    assert (done.returncode, done.stdout) == (1, "")
    assert "organization/costs refused the key (403): it must be an admin key" in done.stderr


def test_the_admin_key_follows_no_redirect(place: Place) -> None:
    with serving(lambda handler, _: send(handler, 200, EMPTY)) as other:
        target = f"{other.url}/v1/organization/costs"
        with serving(lambda handler, _: send(handler, 307, {}, Location=target)) as provider:
            done = place.reconcile(provider.url)
    assert (done.returncode, other.asked) == (1, [])
    assert "redirects (307); an admin key is not taken elsewhere" in done.stderr


def test_usage_that_a_provider_does_not_tell_is_said(place: Place) -> None:
    def answer(handler: BaseHTTPRequestHandler, number: int) -> None:
        absent = "vector_stores" in handler.path
        send(handler, 404 if absent else 200, {} if absent else EMPTY)

    with serving(answer) as provider:
        done = place.reconcile(provider.url)
    assert done.returncode == 0, done.stderr  # neither side has anything of the days before today
    assert "Note: the provider does not report vector_stores." in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words", "status"),
    [
        (["--url", "ftp://x/v1"], "expected a base URL such as", 2),
        (["--url", "https://user:secret@x/v1"], "expected a base URL such as", 2),
        (["--url", "http://api.example.com/v1"], "an admin key goes to another machine by https alone", 2),
        (["--url", "http://127.0.0.1:9", "--since", "today", "--until", "yesterday"], "is not after today", 2),
        (["--url", "http://127.0.0.1:9", "--since", "today"], "the day of --until is not included", 2),
        (["--since", "soon"], "found 'soon', expected a month", 2),
        (["--since", "1999-01"], "days, expected at most 366", 2),
        (["--min-capture", "98"], "98.0 is not in the range", 2),
        (["--where", "key=fsk-k7Qm2xW9pLz4AAAAAAAAAAAAAAAA"], "found a whole key", 2),
        (["--admin-key-file", "/nonexistent"], "cannot be read", 1),
    ],
)
def test_a_mistake_is_told_before_anything_is_asked(
    place: Place, arguments: list[str], words: str, status: int
) -> None:
    common = ["reconcile", "--state", str(place.folder / "state"), "--admin-key-file", str(place.key)]
    done = CliRunner().invoke(main, [*common, *arguments], catch_exceptions=False)
    assert done.exit_code == status
    assert words in " ".join(done.stderr.split())
    assert ":secret" not in done.stderr and ADMIN not in done.stderr


def test_a_key_file_that_others_may_read_is_refused(place: Place) -> None:
    place.key.chmod(0o604)
    done = CliRunner().invoke(main, ["reconcile", "--state", str(place.folder), "--admin-key-file", str(place.key)])
    assert done.exit_code == 1
    assert "(mode 0604), which every user of this machine may read or write" in done.stderr


def test_the_upstream_of_a_configuration_says_where_and_whose_rows(place: Place) -> None:
    place.rows(row(2, started_at=datetime.now(UTC), upstream="other"))
    with serving(lambda handler, _: send(handler, 200, EMPTY)) as provider:
        config = place.folder / "flowstack.toml"
        config.write_text(
            f'[server]\nstate = "{place.folder}/state"\n[upstreams.openai]\nbase_url = "https://127.0.0.1:9/v1"\n'
            f'default = true\n[upstreams.other]\nbase_url = "{provider.url}/v1"\nhosts = ["other.example"]\n'
        )
        command = [*PROGRAM, "reconcile", "--config", str(config), "--admin-key-file", str(place.key), "--json",
                   "--until", "now", "--upstream", "other"]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False, env=ENVIRONMENT)
    assert done.returncode == 3, done.stderr
    assert json.loads(done.stdout)["total"]["ledger"]["requests"] == 1
    assert provider.asked

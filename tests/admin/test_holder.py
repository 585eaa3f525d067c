"""What the holder of a key is shown: the page's files, and its own use, a question at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from flowstack.admin.assets import Assets
from flowstack.admin.holder import MOST_WAITING, Holder
from flowstack.admin.refusals import BadParameter, Busy
from flowstack.interfaces import Answered


class Asked:
    """Another process that the test plays."""

    def __init__(self) -> None:
        self.questions: list[tuple[str, Any, Deferred[Answered]]] = []

    def __call__(self, what: str, parameters: Any, seconds: float) -> Deferred[Answered]:
        answer: Deferred[Answered] = Deferred()
        self.questions.append((what, parameters, answer))
        return answer


@pytest.fixture
def asked() -> Asked:
    return Asked()


def test_a_question_is_of_the_key_that_asks_whatever_the_query_says(asked: Asked) -> None:
    Holder(asked).usage("k1", b"since=7d&by=day%2Cmodel")
    assert asked.questions[0][:2] == ("usage", {"key": "k1", "since": "7d", "by": "day,model"})
    for query in (b"key=k2", b"where=key%3Dk2", b"by=day&by=key", b"since=", b"since=" + b"x" * 65):
        with pytest.raises(BadParameter):
            Holder(asked).usage("k1", query)
    assert len(asked.questions) == 1


def test_each_holder_asks_one_thing_at_a_time_and_all_together_a_few(asked: Asked) -> None:
    holder = Holder(asked)
    for number in range(MOST_WAITING - 1):
        holder.usage(f"k{number}", b"")
    with pytest.raises(Busy):
        holder.usage("k0", b"")
    holder.usage("last", b"")
    with pytest.raises(Busy):
        holder.usage("more", b"")
    asked.questions[0][2].callback(Answered(b"{}"))
    asked.questions[1][2].addErrback(lambda _: None)
    asked.questions[1][2].errback(Busy("it ended"))
    holder.usage("more", b"")
    holder.usage("k1", b"")


FILES = {
    "index.html": b'<script src="static/app.js"></script><link href="static/vendor/u.css">',
    "holder.html": b'<script src="static/holder.js"></script>',
    "app.js": b"import './b.js';" * 100,
    "vendor/u.css": b"a{}",
    "secret.txt": b"no",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(text)
    return tmp_path


def test_pages_name_their_files_by_one_hash_and_these_are_kept_for_good(folder: Path) -> None:
    assets = Assets(folder)
    page = assets.page("index.html", [])
    assert page is not None
    assert page[1] == FILES["index.html"].replace(b'"static/', b'"static/%b/' % assets.hash.encode())
    assert (b"Cache-Control", b"no-store") in page[0]
    file = assets.file(f"{assets.hash}/vendor/u.css", [])
    assert file is not None
    assert file[1] == b"a{}"
    assert (b"Cache-Control", b"public, max-age=31536000, immutable") in file[0]
    other = assets.file("0123456789ab/app.js", [])
    assert other is not None
    assert (b"Cache-Control", b"no-store") in other[0]
    (folder / "app.js").write_bytes(b"changed")
    assert Assets(folder).hash != assets.hash


@pytest.mark.parametrize(
    "path", ["h/secret.txt", "h/index.html", "h/../assets.py", "h//etc/passwd", "app.js", "", "h/", "h/vendor"]
)
def test_nothing_but_the_page_s_files_is_served(folder: Path, path: str) -> None:
    assert Assets(folder).file(path, []) is None


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        ([b"gzip, deflate, br"], b"br"),
        ([b"gzip;q=1.0, br;q=0"], b"gzip"),
        ([b"GZIP"], b"gzip"),
        ([b"gzip;q=0, br;q=0.0"], None),
        ([b"deflate"], None),
        ([], None),
    ],
)
def test_files_are_compressed_as_the_browser_takes_them(
    folder: Path, accepted: list[bytes], coding: bytes | None
) -> None:
    found = Assets(folder).file("h/app.js", accepted)
    assert found is not None
    pairs, body = found
    assert dict(pairs).get(b"Content-Encoding") == coding
    assert dict(pairs)[b"Content-Length"] == b"%d" % len(body)
    assert (len(body) < 100) == (coding is not None)


def test_pages_run_nothing_inline_and_load_nothing_from_elsewhere(folder: Path) -> None:
    page = Assets(folder).page("holder.html", [])
    assert page is not None
    policy = dict(page[0])[b"Content-Security-Policy"].decode()
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
    assert rules["frame-ancestors"] == rules["base-uri"] == "'none'"

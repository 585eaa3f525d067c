"""A key's limits hold across the workers, at every moment and in every window, and are told to the client."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from attrs import field, frozen

from tests.e2e.crowd import (
    STREAM,
    Gauge,
    answer_to,
    chat,
    chunk,
    codes,
    cost,
    crowd,
    journal,
    once,
    writers,
)
from tests.e2e.processes import PATIENCE, eventually
from tests.e2e.raw import Answer, Client, assert_own_error, request
from tests.e2e.raw_upstream import Front, Seen, front, reply

pytestmark = pytest.mark.e2e

KEYS = {
    "parallel": "max_parallel=5",
    "burst": "rpm=20",
    "tpm": "tpm=10000",
    "tpm over": "tpm=10000",
    "budget": "budget=0.01usd/total",
    "budget over": "budget=0.01usd/total",
    "leaver": "tpm=5000 max_parallel=1",
    "leaver's budget": "budget=0.08usd/month",
    "told": "rpm=50 tpm=100000 models=gpt-4o*",
    "unpriced": "budget=1usd/day",
    "gone on": "budget=1usd/day tpm=100000",
    "all": "rpm=1000 tpm=1000000 max_parallel=50 budget=5usd/month",
}

DURATION = re.compile(rb"(?:(\d+)m)?(?:(\d+)s)?(?:(\d+)ms)?")
CLIENTS = 20


@frozen
class House:
    """A proxy with two workers, and a key for each thing to show."""

    ends: Front
    keys: dict[str, str] = field(repr=False)

    def ask(self, key: str, *fields: bytes, **members: Any) -> Answer:
        """Ask for a chat completion on a new connection."""
        return once(self.ends.proxy.port, chat(self.keys[key], *fields, **members))

    def rows(self, key: str) -> list[dict[str, Any]]:
        """The rows of a key."""
        return journal(self.ends.proxy, self.keys[key])

    def drain(self, key: str, turns: int, **members: Any) -> list[Answer]:
        """Ask so many times with each of many clients at once."""

        def client(_: int) -> list[Answer]:
            return [self.ask(key, **members) for _ in range(turns)]

        return [answer for answers in crowd(CLIENTS, client) for answer in answers]

    def drain_to_its_end(self, key: str, turns: int, **members: Any) -> list[Answer]:
        """The same, and then one at a time until one is refused: what many at once reserved is given back by then."""
        answers = self.drain(key, turns, **members)
        answers.append(self.ask(key, **members))
        while answers[-1].status == 200:
            answers.append(self.ask(key, **members))
        return answers


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with front(tmp_path_factory.mktemp("limits"), base="/v1", server={"workers": 2}) as ends:
        keys = {name: ends.proxy.keystore.add(attributes) for name, attributes in KEYS.items()}
        assert ends.proxy.reload()["fault"] is None
        yield House(ends, keys)
        assert ends.upstream.faults == []


@pytest.fixture
def house(shared: House) -> House:
    shared.ends.upstream.forget()
    return shared


def test_max_parallel_is_never_exceeded_at_any_moment_across_workers(house: House) -> None:
    gauge = Gauge()
    house.ends.upstream.script = gauge.script(10, 10, pause=0.1)
    answers = house.drain("parallel", 10, stream=True)
    said = Counter(codes(answers))
    assert set(said) == {"200", "flowstack_concurrency_exceeded"}, said
    assert gauge.most == 5
    assert len(gauge.arrived) == said["200"]
    assert writers(house.ends.proxy, house.keys["parallel"]) == 2, "both workers served the key"
    refused = next(answer for answer in answers if answer.status == 429)
    assert_own_error(refused, 429, "flowstack_concurrency_exceeded")
    assert (refused.one(b"retry-after"), refused.one(b"retry-after-ms")) == (b"1", b"1000")
    # All of it is given back.
    assert Counter(codes(crowd(5, lambda _: house.ask("parallel")))) == {"200": 5}


def test_of_a_burst_as_many_pass_as_rpm_says_and_the_rest_is_told_when_to_come_back(house: House) -> None:
    house.ends.upstream.script = Gauge().script(10, 10)
    answers = house.drain("burst", 3)
    assert Counter(codes(answers)) == {"200": 20, "flowstack_rate_limit_exceeded": 40}
    assert writers(house.ends.proxy, house.keys["burst"]) == 2, "both workers served the key"
    refused = house.ask("burst")
    assert_own_error(refused, 429, "flowstack_rate_limit_exceeded")
    wait = int(refused.one(b"retry-after-ms") or b"")
    assert 0 < wait <= 62_000
    assert refused.one(b"retry-after") == b"%d" % -(-wait // 1000)
    for name in (b"x-ratelimit-%b-requests", b"flowstack-ratelimit-%b-requests"):
        assert (refused.one(name % b"limit"), refused.one(name % b"remaining")) == (b"20", b"0")
        assert wait / 1000 - 1 <= seconds(refused.one(name % b"reset")) <= 62
    assert refused.one(b"x-should-retry") is None


def test_tokens_in_use_stay_within_tpm_where_answers_stay_within_what_they_declared(house: House) -> None:
    house.ends.upstream.script = Gauge().script(20, 500, pause=0.01)
    answers = house.drain_to_its_end("tpm", 3, stream=True, max_completion_tokens=500)
    assert set(codes(answers)) == {"200", "flowstack_rate_limit_exceeded"}
    served = [row for row in house.rows("tpm") if row["status"] == 200]
    assert {row["total_tokens"] for row in served} == {520}, "usage is asked for in the client's place"
    used = sum(row["total_tokens"] for row in served)
    assert 10_000 - 2 * 600 < used <= 10_000, "all of it can be used, and nothing more"
    assert all(b'"usage"' not in answer.body for answer in answers if answer.status == 200)
    refused = next(answer for answer in answers if answer.status == 429)
    assert refused.one(b"x-ratelimit-limit-tokens") == b"10000"
    assert 0 <= int(refused.one(b"x-ratelimit-remaining-tokens") or b"") < 10_000
    assert 0 < int(refused.one(b"retry-after") or b"") <= 62


def test_tpm_is_overshot_by_no_more_than_what_answers_under_way_use_beyond_their_estimate(house: House) -> None:
    house.ends.upstream.script = Gauge().script(20, 2000, pause=0.02)
    answers = house.drain("tpm over", 3, stream=True, max_completion_tokens=500)
    served = [row for row in house.rows("tpm over") if row["status"] == 200]
    used, most_at_once = sum(row["total_tokens"] for row in served), min(CLIENTS, len(served))
    assert len(served) == codes(answers).count("200")
    assert used > 10_000, "the upstream used more than was declared: it was to show what happens then"
    assert used <= 10_000 + most_at_once * (2020 - 500)


def test_a_budget_is_never_overspent_where_answers_stay_within_what_they_declared(house: House) -> None:
    house.ends.upstream.script = Gauge().script(20, 50, pause=0.01)
    answers = house.drain_to_its_end("budget", 3, stream=True, max_completion_tokens=50)
    said = Counter(codes(answers))
    assert set(said) == {"200", "flowstack_budget_exceeded"}, said
    served = [row for row in house.rows("budget") if row["status"] == 200]
    assert [row["cost_usd"] for row in served] == [pytest.approx(cost(20, 50))] * len(served)
    assert 0.01 - 2 * cost(60, 50) < sum(row["cost_usd"] for row in served) <= 0.01
    refused = next(answer for answer in answers if answer.status == 429)
    assert_own_error(refused, 429, "flowstack_budget_exceeded")
    assert refused.one(b"x-should-retry") == b"false"
    assert refused.one(b"retry-after") is None


def test_a_budget_is_overspent_by_no_more_than_what_answers_under_way_cost_beyond_their_estimate(house: House) -> None:
    house.ends.upstream.script = Gauge().script(20, 500, pause=0.02)
    house.drain("budget over", 3, max_completion_tokens=50)
    served = [row for row in house.rows("budget over") if row["status"] == 200]
    spent = sum(row["cost_usd"] for row in served)
    assert 0.01 < spent <= 0.01 + min(CLIENTS, len(served)) * (cost(20, 500) - cost(0, 50))


def begun(seen: Seen) -> None:
    """Begin a stream, and let the client leave."""
    seen.read_body()
    seen.link.offer(STREAM + chunk(b'data: {"model": "gpt-4o", "choices": []}\n\n'))
    seen.link.to_the_end()


@pytest.mark.parametrize(("key", "left", "fits"), [("leaver", 3000, 1000), ("leaver's budget", 3000, 1000)])
def test_a_client_that_leaves_a_stream_is_charged_the_estimate_and_its_row_stays_null(
    house: House, key: str, left: int, fits: int
) -> None:
    house.ends.upstream.script = begun
    with Client(house.ends.proxy.port) as client:
        client.send(chat(house.keys[key], stream=True, max_completion_tokens=left))
        client.until(b"choices")
        client.abort()
    (row,) = eventually(lambda: house.rows(key), "the row")
    assert (row["end"], row["usage_source"]) == ("client_gone", "none")
    assert (row["total_tokens"], row["cost_usd"]) == (None, None)
    house.ends.upstream.script = Gauge().script(20, 20)
    assert house.ask(key, max_completion_tokens=left).status == 429, "the estimate stays charged"
    assert house.ask(key, max_completion_tokens=fits).status == 200


def test_an_upstream_that_cuts_or_answers_with_an_error_is_charged_as_the_rule_says(house: House) -> None:
    def remaining() -> int:
        return int(house.ask("gone on", max_completion_tokens=100).one(b"flowstack-ratelimit-remaining-tokens") or b"")

    house.ends.upstream.script = Gauge().script(0, 1)
    first = remaining()
    house.ends.upstream.script = reply(b"HTTP/1.1 500 Oh no\r\nContent-Length: 0\r\n\r\n")
    house.ask("gone on", max_completion_tokens=5000)
    house.ends.upstream.script = Gauge().script(0, 1)
    assert remaining() == first - 1, "an error of the upstream's costs nothing"
    house.ends.upstream.script = reply(close=True)
    assert_own_error(house.ask("gone on", max_completion_tokens=5000), 502, "upstream_closed")
    house.ends.upstream.script = Gauge().script(0, 1)
    assert first - 5100 < remaining() < first - 5000, "one that says nothing may have worked: the estimate stays"


def test_what_a_limited_client_is_told(house: House) -> None:
    own = b"HTTP/1.1 200 OK\r\nx-ratelimit-remaining-requests: 77\r\nFlowstack-RateLimit-Limit-Requests: 1\r\n"
    behind = house.ends.upstream
    for number, (script, raw, status) in enumerate(
        [
            (Gauge().script(10, 10), chat(house.keys["told"], max_completion_tokens=100), 200),
            (Gauge().script(10, 10), chat(house.keys["told"], stream=True, max_completion_tokens=100), 200),
            (reply(own + b"Content-Length: 0\r\n\r\n"), request(house.keys["told"]), 200),
            (reply(b"HTTP/1.1 429 No\r\nContent-Length: 0\r\n\r\n"), chat(house.keys["told"]), 429),
            (reply(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n"), chat(house.keys["told"]), 500),
            (reply(b"no http\r\n\r\n", close=True), chat(house.keys["told"]), 502),
            (reply(), chat(house.keys["told"], model="o1"), 403),
            (reply(), chat(house.keys["told"], max_completion_tokens=200_000), 429),
        ],
        1,
    ):
        behind.script = script
        answer = once(house.ends.proxy.port, raw)
        assert answer.status == status
        assert answer.one(b"flowstack-ratelimit-limit-requests") == b"50"
        admitted = min(number, 6)  # of the last two nothing went upstream
        assert answer.one(b"flowstack-ratelimit-remaining-requests") == b"%d" % (50 - admitted)
        assert 60 <= seconds(answer.one(b"flowstack-ratelimit-reset-requests")) <= 62
        assert answer.one(b"flowstack-ratelimit-limit-tokens") == b"100000"
        assert 0 < int(answer.one(b"flowstack-ratelimit-remaining-tokens") or b"") <= 100_000
        assert seconds(answer.one(b"flowstack-ratelimit-reset-tokens")) <= 62
        assert answer.one(b"x-ratelimit-remaining-requests") == (
            b"77" if number == 3 else b"44" if number == 8 else None
        ), "the upstream's own pass, and Flowstack's are on its own 429"
    assert_own_error(answer, 429, "flowstack_rate_limit_exceeded")
    assert answer.one(b"x-should-retry") == b"false", "no wait makes it fit"
    behind.script = reply(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    free = once(house.ends.proxy.port, chat(house.ends.proxy.key))
    assert not any(name.lower().startswith(b"flowstack-ratelimit") for name, _ in free.pairs)


def seconds(text: bytes | None) -> float:
    """A time as OpenAI writes it."""
    match = DURATION.fullmatch(text or b"?")
    assert match is not None and match[0], text
    minutes, whole, milliseconds = (int(group or b"0") for group in match.groups())
    return minutes * 60 + whole + milliseconds / 1000


def test_a_model_without_a_price_is_refused_to_a_key_with_a_budget(house: House) -> None:
    answer = house.ask("unpriced", model="nobody-knows-me")
    assert_own_error(answer, 403, "model_not_allowed")
    assert house.ends.upstream.requests == []


def test_an_answer_that_came_before_a_large_body_s_end_leaves_nothing_reserved(house: House) -> None:
    """The exchange is over, but its upload goes on: what the end of that asks for is charged to nobody."""
    key = house.keys["gone on"]
    house.ends.upstream.script = Gauge().script(0, 1)
    before = int(house.ask("gone on", max_completion_tokens=100).one(b"flowstack-ratelimit-remaining-tokens") or b"")
    answered = threading.Event()

    def early(seen: Seen) -> None:
        seen.link.offer(b"HTTP/1.1 400 Bad\r\nContent-Length: 0\r\n\r\n")
        answered.set()
        seen.read_body()

    house.ends.upstream.script = early
    raw = chat(key, user="u" * 500_000, max_completion_tokens=40_000)
    with Client(house.ends.proxy.port) as client:
        client.send(raw[:-100_000])
        assert answered.wait(PATIENCE)
        client.until(b"400 Bad")
        client.offer(raw[-100_000:])
        link = house.ends.upstream.last().link
        eventually(lambda: link.closed, "the upstream connection is closed")
    house.ends.upstream.script = Gauge().script(0, 1)
    after = int(house.ask("gone on", max_completion_tokens=100).one(b"flowstack-ratelimit-remaining-tokens") or b"")
    assert before - after < 200


def test_several_limits_stand_together(house: House) -> None:
    house.ends.upstream.script = Gauge().script(10, 10)
    answer = house.ask("all", max_completion_tokens=10)
    assert answer.status == 200
    assert answer.one(b"flowstack-ratelimit-remaining-requests") == b"999"
    assert answer.body == answer_to({}, 10, 10).partition(b"\r\n\r\n")[2]

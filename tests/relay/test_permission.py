"""What a body may ask for: the rules alone, for each kind of key."""

from __future__ import annotations

import json
import re
from functools import partial
from importlib import resources
from typing import Any

import pytest
from attrs import frozen

from flowstack.errors import EndpointNotAllowed, FlowstackError, ModelNotAllowed
from flowstack.http.headers import ReceivedHeaders
from flowstack.keys import Key
from flowstack.ledger.row import BLANK
from flowstack.prices.cost import Prices
from flowstack.relay.permission import Permission, Terms
from flowstack.usage.operations import model_of_path, operation_of, read_strictly
from flowstack.usage.request_facts import RequestFacts, read_request_facts, reader_for

PRICES = Prices(json.loads(resources.files("flowstack.prices").joinpath("prices.json").read_text()))
JSON = {b"content-type": b"application/json"}
WHEN = 1.7e9
BATCHES_HAVE_A_PRICE = 1.795e9


@frozen
class Plan:
    """Limits, as far as they matter here."""

    metered: bool = False
    priced: bool = False


FREE, METERED, PRICED = None, Plan(metered=True), Plan(metered=True, priced=True)


def key(**more: Any) -> Key:
    return Key("k", b"x" * 32, **more)


def terms_of(
    of: Key | None = None,
    plan: Any = PRICED,
    path: bytes = b"chat/completions",
    operators_key: bool = False,
    default_price: float | None = None,
    stated: int | None = None,
) -> Terms:
    operation = read_strictly(operation_of(b"POST", path), path)
    named = model_of_path(path) if operation.model_in_path else None
    return Permission(PRICES, stated, default_price, False).terms(
        of or key(), operation, plan, named, b"POST", b"/v1/" + path, operators_key
    )


def judge(*args: Any, **more: Any) -> tuple[int | None, float | None]:
    """Tokens, and what they cost at most."""
    return reserved(*args, **more)[:2]


def reserved(
    body: bytes | dict[str, Any],
    of: Key | None = None,
    plan: Any = FREE,
    path: bytes = b"responses",
    operators_key: bool = False,
    headers: dict[bytes, bytes] = JSON,
    default_price: float | None = None,
    stated: int | None = None,
    when: float = WHEN,
) -> tuple[int | None, float | None, float | None]:
    """Whole and in pieces, which must be judged alike."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    operation = read_strictly(operation_of(b"POST", path), path)
    named = model_of_path(path) if operation.model_in_path else None
    terms = terms_of(of, plan, path, operators_key, default_price, stated)
    fields = ReceivedHeaders([(name, value) for name, value in headers.items()])
    outcomes: list[Any] = []
    for pieces in ([raw], [raw[:9], raw[9:]]):
        reader = reader_for(operation.body, headers)
        assert reader is not None
        for piece in pieces:
            reader.feed(piece)
        whole = read_request_facts(operation.body, headers, raw)
        assert whole is not None
        for asked in (reader.finish(), whole):
            model = named if operation.model_in_path else asked.model
            try:
                outcomes.append(terms.judge(asked, len(raw), model, fields, when))
            except FlowstackError as error:
                outcomes.append((type(error), str(error)))
    assert outcomes == outcomes[:1] * 4
    first: tuple[Any, Any, Any] = outcomes[0]
    if isinstance(first[0], type):
        raise first[0](first[1])
    return first


OTHER_PLACES: list[dict[str, Any]] = [
    {"tools": [{"type": "image_generation", "model": "o1"}]},
    {"models": ["gpt-4o", "o1"]},
    {"fallbacks": [{"gpt-4o": ["o1"]}]},
    {"session": {"Model": "o1"}},
    {"route": "fallback"},
    {"extra_body": {"model": {"id": "o1"}}},
]


@pytest.mark.parametrize("more", OTHER_PLACES)
def test_every_model_that_a_body_names_is_held_against_the_key(more: dict[str, Any]) -> None:
    body = {"model": "gpt-4o", "input": "hi", **more}
    assert judge(body) == (None, None)
    with pytest.raises(ModelNotAllowed, match="may not use the model"):
        judge(body, key(models=("gpt-4o*",)))
    assert judge(body, key(models=("gpt-4o*", "o1", "fallback"))) == (None, None)
    assert judge({"model": "gpt-4o", "metadata": more}, key(models=("gpt-4o*",))) == (None, None)


def test_a_model_in_the_path_and_another_in_the_body_are_both_held_against_the_key() -> None:
    path = b"engines/gpt-4o/chat/completions"
    of = key(models=("gpt-4o",))
    assert judge({"messages": []}, of, path=path) == (None, None)
    assert judge({"model": "gpt-4o", "messages": []}, of, path=path) == (None, None)
    with pytest.raises(ModelNotAllowed, match="may not use the model o1"):
        judge({"model": "o1", "messages": []}, of, path=path)
    with pytest.raises(ModelNotAllowed, match="may not use the model o1"):
        judge({"model": "gpt-4o", "messages": []}, of, path=b"engines/o1/chat/completions")


def cost(body: dict[str, Any], **more: Any) -> float | None:
    return judge({"max_output_tokens": 1000, "max_tokens": 1000, **body}, plan=PRICED, **more)[1]


def test_what_is_reserved_is_what_the_dearest_model_costs() -> None:
    cheap, dear = cost({"model": "gpt-4o-mini"}), cost({"model": "gpt-4o"})
    assert cheap is not None and dear is not None
    assert cheap < dear / 10
    both = {"model": "gpt-4o-mini", "fallbacks": ["gpt-4o"]}
    assert (cost(both) or 0) > dear
    assert (cost({"model": "gpt-4o", "fallbacks": ["gpt-4o-mini"]}) or 0) > dear
    assert (cost({"model": "gpt-4o"}, path=b"engines/gpt-4o-mini/chat/completions") or 0) == dear
    assert (cost({"model": "gpt-4o-mini"}, path=b"engines/gpt-4o/chat/completions") or 0) > dear
    # One without a price may be the dearest of all.
    assert cost({"model": "gpt-4o-mini", "models": ["nobody-knows-me"]}) is None
    assert cost({"model": "nobody-knows-me", "models": ["gpt-4o-mini"]}) is None
    assert (cost({"model": "gpt-4o-mini", "models": ["nobody-knows-me"]}, default_price=1000.0) or 0) > 1


def test_numbers_beyond_all_sense_are_refused_to_keys_that_pay_and_pass_for_others() -> None:
    for number in (b"1e308", b"-1e308", b"1" * 400, b"9007199254740993", b'"99999999999999999999"', b"true", b"1e-400"):
        for name in (b"max_tokens", b"max_completion_tokens", b"max_output_tokens", b"n", b"best_of"):
            body = b'{"model":"gpt-4o","%b":%b,"n":%b}' % (name, number, number if name != b"n" else b"1")
            assert judge(body) == (None, None)
            for plan in (METERED, PRICED):
                try:
                    tokens, usd = judge(body, plan=plan, path=b"chat/completions")
                except ModelNotAllowed:
                    continue
                assert tokens is not None and 0 < tokens < 2**54
                assert usd is None or 0 < usd < 1e12


def test_a_moderation_takes_nothing_of_a_budget_whether_it_names_its_model_or_not() -> None:
    for more in ({}, {"model": "omni-moderation-latest"}, {"model": "text-moderation-stable"}):
        assert judge({"input": "Is this fine?", **more}, plan=PRICED, path=b"moderations")[1] == 0
    assert judge({"input": "Is this fine?", "model": "in-house"}, plan=PRICED, path=b"moderations")[1] is None
    assert judge({"input": "Is this fine?"}, plan=PRICED)[1] is None


SONNET, HAIKU = {"model": "claude-sonnet-4-5"}, {"model": "claude-haiku-4-5"}
# US dollars for a million tokens, as a batch: half price; the input as what is kept in the cache for an hour, which is
# twice as dear, and 1.1 times that in one region.
SONNET_IN, SONNET_OUT, HAIKU_IN, HAIKU_OUT = 1.5 * 2 * 1.1, 7.5 * 1.1, 0.5 * 2 * 1.1, 2.5 * 1.1
LONG_IN, LONG_OUT = 2 * SONNET_IN, 1.5 * SONNET_OUT  # of a prompt that is longer than 200,000
MOST_OF_SONNET = 64_000

BATCHES: list[tuple[str, list[dict[str, Any]], float, float]] = [
    ("one", [{**HAIKU, "max_tokens": 1_000_000}], HAIKU_OUT, HAIKU_OUT),
    ("the sum of all", [{**HAIKU, "max_tokens": 10_000}] * 100, HAIKU_OUT, HAIKU_OUT),
    ("by the dearest model", [{**HAIKU, "max_tokens": 900_000}, {**SONNET, "max_tokens": 100_000}], SONNET_OUT,
     SONNET_OUT),
    ("nothing declared", [SONNET] * 100, 100 * MOST_OF_SONNET * SONNET_OUT / 1e6, 100 * 4_096 * SONNET_OUT / 1e6),
    ("one declares nothing", [SONNET, {**SONNET, "max_tokens": 36_000}], 100_000 * SONNET_OUT / 1e6,
     40_096 * SONNET_OUT / 1e6),
    ("no number", [{**SONNET, "max_tokens": -1}, {**SONNET, "max_tokens": 1e300}, {**SONNET, "max_tokens": None}],
     3 * MOST_OF_SONNET * SONNET_OUT / 1e6, 3 * 4_096 * SONNET_OUT / 1e6),
    ("a number as text", [{**SONNET, "max_tokens": "1000000"}], SONNET_OUT, SONNET_OUT),
    ("thinks more than it says", [{**SONNET, "max_tokens": 1, "thinking": {"budget_tokens": 500_000}}] * 2, SONNET_OUT,
     SONNET_OUT),
    ("thinks within what it says", [{**SONNET, "max_tokens": 500_000, "thinking": {"budget_tokens": 9}}] * 2,
     SONNET_OUT, SONNET_OUT),
    ("searches", [{**HAIKU, "max_tokens": 1, "tools": [{"type": "web_search_20250305", "name": "w"}]}] * 10,
     10 * 128_000 * HAIKU_IN / 1e6, 10 * 128_000 * HAIKU_IN / 1e6),
    ("text", [{**HAIKU, "max_tokens": 1, "messages": [{"role": "user", "content": "a" * 40_000}]}] * 5,
     200_000 * HAIKU_IN / 1e6, 50_000 * HAIKU_IN / 1e6),
    ("text that may all be one long prompt's", [{**SONNET, "max_tokens": 2_000, "system": "a" * 150_000}] * 5,
     (750_000 * LONG_IN + 10_000 * LONG_OUT) / 1e6, (187_500 * SONNET_IN + 10_000 * SONNET_OUT) / 1e6),
]  # fmt: skip


@pytest.mark.parametrize("case", BATCHES, ids=[case[0] for case in BATCHES])
def test_a_message_batch_reserves_the_sum_of_its_requests(
    case: tuple[str, list[dict[str, Any]], float, float],
) -> None:
    _, requests, most, usual = case
    body = {"requests": [{"custom_id": str(number), "params": params} for number, params in enumerate(requests)]}
    of = key(endpoints=("/v1/messages/batches",))
    tokens, cost, least = reserved(body, of, PRICED, b"messages/batches", when=BATCHES_HAVE_A_PRICE)
    size = len(re.sub("a{999,}", "", json.dumps(body))) * LONG_IN / 1e6
    assert tokens == 0
    assert cost is not None
    assert most <= cost <= most + size
    assert usual <= (cost if least is None else least) <= usual + size


def test_a_message_batch_is_held_to_the_models_of_its_key() -> None:
    of = key(endpoints=("/v1/messages/batches",), models=("claude-haiku*",))
    batch = partial(judge, of=of, plan=FREE, path=b"messages/batches")
    assert batch({"requests": [{"custom_id": "a", "params": HAIKU}]}) == (None, None)
    for others in ([{"params": SONNET}], [{"params": HAIKU}, {"Params": SONNET}], [{"params": HAIKU}, SONNET]):
        with pytest.raises(ModelNotAllowed, match="may not use the model claude-sonnet-4-5"):
            batch({"requests": others})
    with pytest.raises(ModelNotAllowed, match="claude-sonnet-4-5"):
        batch({"requests": [{"params": HAIKU}], **SONNET})


UNREAD_BATCHES: list[bytes] = [
    b"{}", b'{"requests":[]}', b'{"requests":{"input_file_id":"f"}}', b"[]", b'{"requests":[{"params":{"model":"a"}}]',
    b'{"requests":[{"params":{"model":"a","max_tokens":9,"max_tokens":1}}]}',
    b'{"requests":[{"params":{"model":"a","max_tokens":9,"Max_Tokens":1}}]}',
]  # fmt: skip


@pytest.mark.parametrize("body", UNREAD_BATCHES)
def test_a_message_batch_that_cannot_be_read_is_refused_to_limited_keys(body: bytes) -> None:
    endpoints = ("/v1/messages/batches",)
    for of, plan in ((key(endpoints=endpoints), PRICED), (key(endpoints=endpoints, models=("a",)), FREE)):
        with pytest.raises(ModelNotAllowed, match="must be read, and it cannot be"):
            judge(body, of, plan, b"messages/batches")


def test_a_message_batch_of_a_model_without_a_price_is_not_let_through_a_budget() -> None:
    body = {"requests": [{"params": {**SONNET, "max_tokens": 1}}, {"params": {"model": "in-house", "max_tokens": 1}}]}
    of = key(endpoints=("/v1/messages/batches",))
    assert judge(body, of, PRICED, b"messages/batches") == (0, None)
    assert (judge(body, of, PRICED, b"messages/batches", default_price=1e6)[1] or 0) > 100


def test_the_most_that_can_be_said_is_estimated_without_trouble() -> None:
    tokens, usd = judge({"model": "gpt-4o", "max_tokens": 2**53, "n": 2**53}, plan=PRICED, default_price=1e6)
    assert tokens is not None and tokens >= 2**53
    assert usd is not None and 0 < usd < 1e15
    tokens, usd = judge({"model": "x", "n": 2**53}, plan=PRICED, default_price=1e6)
    assert usd is not None and 0 < usd < 1e18


BAD: list[tuple[bytes, dict[bytes, bytes]]] = [
    (b'{"model":"gpt-4o","input":"\xff"}', JSON),
    (b'{"model":"gpt-4o","input":"a\nb"}', JSON),
    (b'{"model":"gpt-4o","input":[truefalse]}', JSON),
    (b'{"model":"gpt-4o","input":{"a" 1}}', JSON),
    (b'{"model":"gpt-4o","model":"gpt-4o"}', JSON),
    (b'{"model":"gpt-4o","Model":"gpt-4o"}', JSON),
    (b'{"model":"gpt-4o"}', {b"content-type": b"text/plain"}),
    (b'{"model":"gpt-4o"}', {**JSON, b"content-encoding": b"gzip"}),
    (b'{"model":"gpt-4o","input":[{"id":"a","type":"message","type":"item_reference"}]}', JSON),
]


@pytest.mark.parametrize(("body", "headers"), BAD)
def test_what_cannot_be_read_is_refused_to_limited_keys_and_under_the_operators(
    body: bytes, headers: dict[bytes, bytes]
) -> None:
    assert judge(body, headers=headers) == (None, None)
    with pytest.raises(ModelNotAllowed, match="must be read, and it cannot be"):
        judge(body, key(models=("gpt-4o",)), headers=headers)
    with pytest.raises(ModelNotAllowed, match="must be read, and it cannot be"):
        judge(body, plan=METERED, headers=headers)
    with pytest.raises(EndpointNotAllowed, match="operator's provider key, so that the request body must be read"):
        judge(body, operators_key=True, headers=headers)
    assert judge(body, key(endpoints=("/v1/responses",)), operators_key=True, headers=headers) == (None, None)


@pytest.mark.parametrize(
    ("more", "shown"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": {"id": "conv_1"}}, "conversation.id"),
        ({"prompt": {"version": "1"}}, "prompt"),
        ({"input": [{"id": "msg_1"}]}, "input.id"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "item_reference"),
        ({"input": [{"content": [{"type": "input_image", "file_id": "file-1"}]}]}, "file_id"),
        ({"tools": [{"type": "file_search", "vector_store_ids": ["vs_1"]}]}, "vector_store_ids"),
        ({"tools": [{"container": "c"}], "messages": [{"audio": {"id": "a"}}]}, "audio.id, container"),
    ],
)
def test_under_the_operators_key_nothing_that_is_stored_can_be_referred_to(more: dict[str, Any], shown: str) -> None:
    body = {"model": "gpt-4o", **more}
    assert judge(body) == (None, None)
    with pytest.raises(EndpointNotAllowed, match=f"perhaps by others: {shown}\\."):
        judge(body, operators_key=True)
    assert judge(body, key(endpoints=("/v1/responses",)), operators_key=True) == (None, None)
    assert judge({"model": "gpt-4o", "input": "previous_response_id"}, operators_key=True) == (None, None)


def dollars(prompt: float, output: float, rate: tuple[float, float]) -> Any:
    return pytest.approx((prompt * rate[0] + output * rate[1]) / 1e6)


GPT5, GPT4O, O1 = (1.25, 10.0), (2.5, 10.0), (15.0, 60.0)


def test_where_no_most_is_declared_the_model_s_is_reserved_of_money_and_4096_of_tokens() -> None:
    body = b'{"model":"gpt-5","service_tier":"default"}'  # 42 bytes, 11 tokens
    assert reserved(body, plan=METERED) == (11 + 4096, None, None)
    assert reserved(body, plan=PRICED) == (11 + 4096, dollars(42, 128_000, GPT5), dollars(11, 4096, GPT5))
    assert reserved(body, plan=PRICED, stated=500) == (511, dollars(42, 500, GPT5), dollars(11, 500, GPT5))
    most = dollars(42, 200_000, GPT5), dollars(11, 200_000, GPT5)
    assert reserved(body, plan=PRICED, stated=200_000) == (200_011, *most)
    unknown = b'{"model":"nobody-knows-me"}'  # 27 bytes, 7 tokens
    assert reserved(unknown, plan=PRICED, default_price=10.0) == (
        4103, pytest.approx(0.04123), pytest.approx(0.04103)
    )  # fmt: skip


def test_a_declared_most_is_reserved_and_must_be_left_with_the_usual_input() -> None:
    body = b'{"model":"gpt-5","service_tier":"default","max_output_tokens":1000}'  # 67 bytes, 17 tokens
    for stated in (None, 500):
        assert reserved(body, plan=PRICED, stated=stated) == (
            1017, dollars(67, 1000, GPT5), dollars(17, 1000, GPT5)
        )  # fmt: skip


def test_a_member_of_another_api_declares_nothing() -> None:
    tokens, cost, least = reserved(b'{"model":"gpt-5","service_tier":"default","max_tokens":1}', plan=PRICED)
    assert (tokens, cost, least) == (15 + 4096, dollars(57, 128_000, GPT5), dollars(15, 4096, GPT5))


def test_what_has_an_address_may_cost_a_context_and_a_picture_must_be_left() -> None:
    picture = {"content": [{"image_url": {"url": "https://a.test/b"}}]}
    body = {"model": "gpt-4o", "service_tier": "default", "max_tokens": 100, "messages": [picture]}
    size = len(json.dumps(body))
    tokens, cost, least = reserved(body, plan=PRICED, path=b"chat/completions")
    assert tokens == -(-size // 4) + 1_500 + 100
    assert cost == dollars(128_000, 100, GPT4O)
    assert least == dollars(-(-size // 4) + 1_500, 100, GPT4O)


def test_each_model_that_is_named_is_reserved_by_its_own_most_and_the_dearest_counts() -> None:
    body = {"model": "gpt-4o", "models": ["gpt-5"], "service_tier": "default", "messages": []}
    size = len(json.dumps(body))
    _, cost, least = reserved(body, plan=PRICED, path=b"chat/completions")
    assert cost == dollars(size, 128_000, GPT5)
    assert least == dollars(-(-size // 4), 4096, GPT4O)


def test_a_tool_that_draws_adds_a_picture_at_its_own_model_s_price() -> None:
    def more_than_without(tool: dict[str, Any]) -> tuple[int, float]:
        body = {"model": "gpt-4o", "max_output_tokens": 100, "tools": [{"type": "image_generation", **tool}]}
        with_it, without = reserved(body, plan=PRICED), reserved({**body, "tools": [{"type": "mcp"}]}, plan=PRICED)
        return with_it[0] - without[0], with_it[1] - without[1]  # type: ignore[operator]

    assert more_than_without({}) == (6_600, pytest.approx(6_600 * 40 / 1e6))
    tokens, cost = more_than_without({"model": "gpt-image-1-mini"})
    assert (tokens, cost) == (6_600, pytest.approx(6_600 * 8 / 1e6))


UNCLEAR = [
    (b'"stream":1', "stream is a number"),
    (b'"stream":"true"', "stream is a text"),
    (b'"stream":[]', "stream is a list"),
    (b'"stream":true,"stream_options":[]', "stream_options is a list"),
    (b'"stream":true,"stream_options":"x"', "stream_options is a text"),
    (b'"stream":true,"stream_options":false', "stream_options is true or false"),
    (b'"stream":true,"stream_options":{"include_usage":0}', "include_usage is a number"),
    (b'"stream":true,"stream_options":{"include_usage":"no"}', "include_usage is a text"),
    (b'"stream":true,"stream":false', "it says stream more than once"),
    (b'"stream":true,"Stream":false', "it says stream more than once"),
    (b'"stream":true,"stream_options":{},"stream_options":null', "it says stream_options more than once"),
    (b'"stream":true,"Stream_Options":{}', "it says stream_options more than once"),
    (b'"stream":true,"stream_options":{"include_usage":true,"include_usage":false}', "stream_options more than once"),
    (b'"stream":true,"stream_options":{"Include_Usage":false}', "it says stream_options more than once"),
]


@pytest.mark.parametrize(("said", "shown"), UNCLEAR)
def test_what_is_unclear_about_usage_is_refused_to_keys_that_pay_by_it(said: bytes, shown: str) -> None:
    body = b'{"model":"gpt-4o",%b}' % said
    for path in (b"chat/completions", b"completions"):
        assert judge(body, path=path) == (None, None)
        for plan in (METERED, PRICED):
            with pytest.raises(ModelNotAllowed, match=shown):
                judge(body, plan=plan, path=path)
    if "more than" not in shown:  # these say what they used in any case
        for path in (b"responses", b"messages"):
            assert judge(body, plan=METERED, path=path)[0] is not None
    null = b'{"model":"gpt-4o","stream":null,"stream_options":null}'
    assert judge(null, plan=METERED, path=b"chat/completions")[0] is not None


def test_an_operator_who_asks_for_no_usage_has_the_client_s_word_stand() -> None:
    body = b'{"model":"gpt-4o","stream":1}'
    assert judge(body, key(inject_usage=False), plan=METERED, path=b"chat/completions")[0] is not None
    assert terms_of(key(inject_usage=False)).overrules is False
    assert terms_of(plan=FREE, of=key(inject_usage=True)).overrules is False
    assert terms_of().overrules is True
    assert terms_of(path=b"responses").overrules is False


def row(**values: Any) -> Any:
    return BLANK | {"status": 200, "attempts": 1, "usage_source": "upstream", "model_requested": "gpt-4o"} | values


USED = {"prompt_tokens": 1000, "completion_tokens": 100_000, "total_tokens": 101_000}


@pytest.mark.parametrize(
    ("values", "default_price", "cost"),
    [
        (USED, None, dollars(1000, 100_000, GPT4O)),
        (USED | {"unpriced": "no_price:gpt-9"}, None, dollars(1000, 100_000, GPT4O)),
        (USED | {"model_requested": "nobody-knows-me"}, None, None),
        (USED | {"model_requested": "nobody-knows-me"}, 3.0, pytest.approx(0.303)),
        (USED | {"model_requested": None}, 3.0, pytest.approx(0.303)),
        (USED, 1000.0, pytest.approx(101.0)),
        (USED, 0.001, dollars(1000, 100_000, GPT4O)),
        (USED | {"cost_usd": 0.5}, 1000.0, 0.5),
        (USED | {"total_tokens": None}, None, dollars(1000, 100_000, GPT4O)),
        (USED | {"total_tokens": 111_000}, None, dollars(1000, 110_000, GPT4O)),
        (USED | {"completion_tokens": None}, None, dollars(1000, 100_000, GPT4O)),
        ({"total_tokens": 5}, None, None),
        ({"prompt_tokens": 5}, None, None),
        (USED | {"usage_source": "none"}, None, None),
        (USED | {"service_tier": "default"}, None, dollars(1000, 100_000, GPT4O)),
    ],
)
def test_tokens_whose_price_is_unknown_are_charged_by_the_model_asked_for_or_the_default_price(
    values: dict[str, Any], default_price: float | None, cost: Any
) -> None:
    before = row(**values)
    terms, asked = terms_of(default_price=default_price), RequestFacts("gpt-4o")
    assert terms.assumed(dict(before), asked, WHEN)["cost_usd"] == cost  # type: ignore[arg-type]
    assert terms_of(plan=METERED, default_price=default_price).assumed(before, asked, WHEN) is before


@pytest.mark.parametrize(
    ("body", "values", "cost"),
    [
        ({"models": ["o1"]}, {}, dollars(1000, 100_000, O1)),
        ({"tools": [{"type": "x", "model": "o1"}]}, {"model": "unknown"}, dollars(1000, 100_000, O1)),
        ({"fallbacks": ["gpt-4o-mini", "unknown"]}, {}, dollars(1000, 100_000, GPT4O)),
        ({"models": ["o1"]}, {"cost_usd": 0.5, "model": "gpt-4o"}, 0.5),
    ],
)
def test_where_several_models_were_named_the_dearest_counts_for_what_has_no_price(
    body: dict[str, Any], values: dict[str, Any], cost: float
) -> None:
    asked = read_request_facts("json", JSON, json.dumps({"model": "gpt-4o", **body}).encode())
    assert asked is not None
    assert terms_of().assumed(row(**USED, **values), asked, WHEN)["cost_usd"] == cost


@pytest.mark.parametrize(
    ("wanted", "said", "times"),
    [
        ("priority", None, 1.7), ("priority", "default", 1), ("flex", None, 1.7), ("never-heard-of", None, 1.7),
        ("auto", None, 1), ("default", None, 1), (None, None, 1),
    ],
)  # fmt: skip
def test_where_no_tier_is_said_the_charge_is_no_less_than_in_the_one_asked_for(
    wanted: str | None, said: str | None, times: float
) -> None:
    before = row(**USED, cost_usd=1.0025, service_tier=said)
    charged = terms_of().assumed(before, RequestFacts("gpt-4o", service_tier=wanted), 1.8e9)
    assert charged["cost_usd"] == pytest.approx(times * before["cost_usd"])

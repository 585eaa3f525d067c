"""What a body may ask for: the rules alone, for each kind of key."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import pytest
from attrs import frozen

from flowstack.errors import EndpointNotAllowed, FlowstackError, ModelNotAllowed
from flowstack.policy.headers import ReceivedHeaders
from flowstack.policy.keys import Key
from flowstack.policy.operations import model_of_path, operation_of
from flowstack.policy.pricing import Prices
from flowstack.policy.usage.asked import asked_of, reader_for
from flowstack.relay.permission import Permission

PRICES = Prices(json.loads(resources.files("flowstack.ledger").joinpath("prices.json").read_text()))
JSON = {b"content-type": b"application/json"}
WHEN = 1.7e9


@frozen
class Plan:
    """Limits, as far as they matter here."""

    metered: bool = False
    priced: bool = False


FREE, METERED, PRICED = None, Plan(metered=True), Plan(metered=True, priced=True)


def key(**more: Any) -> Key:
    return Key("k", b"x" * 32, **more)


def judge(
    body: bytes | dict[str, Any],
    of: Key | None = None,
    plan: Any = FREE,
    path: bytes = b"responses",
    operators_key: bool = False,
    headers: dict[bytes, bytes] = JSON,
    default_price: float | None = None,
) -> tuple[int | None, float | None]:
    """Whole and in pieces, which must be judged alike."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    operation = operation_of(b"POST", path)
    named = model_of_path(path) if operation.model_in_path else None
    terms = Permission(PRICES, 4096, default_price, False).terms(
        of or key(), operation, plan, named, b"POST", b"/v1/" + path, operators_key
    )
    fields = ReceivedHeaders([(name, value) for name, value in headers.items()])
    outcomes: list[Any] = []
    for pieces in ([raw], [raw[:9], raw[9:]]):
        reader = reader_for(operation.body, headers)
        assert reader is not None
        for piece in pieces:
            reader.feed(piece)
        whole = asked_of(operation.body, headers, raw)
        assert whole is not None
        for asked in (reader.finish(), whole):
            model = named if operation.model_in_path else asked.model
            try:
                outcomes.append(terms.judge(asked, len(raw), model, fields, WHEN))
            except FlowstackError as error:
                outcomes.append((type(error), str(error)))
    assert outcomes == outcomes[:1] * 4
    first: tuple[Any, Any] = outcomes[0]
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
    return judge({"max_output_tokens": 1000, **body}, plan=PRICED, **more)[1]


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

"""Whether what a body asks for may pass, what it reserves, and whether usage is asked for in the client's place."""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass
from typing import Final

from flowstack.errors import EndpointNotAllowed, FlowstackError, ModelNotAllowed
from flowstack.http.headers import ReceivedHeaders
from flowstack.interfaces import Plan
from flowstack.keys import Key
from flowstack.keys.permits import check_model, names_endpoint, shown
from flowstack.ledger.row import Row
from flowstack.limits.charge import assumed_cost
from flowstack.memo import Memo
from flowstack.prices.cost import Prices
from flowstack.usage.estimate import (
    BYTES_A_TOKEN,
    DEFAULT_IMAGE_MODEL,
    IMAGE_TOKENS,
    OUTPUT_TOKENS,
    Estimate,
    Measure,
    estimated,
    measure_of,
    output_of,
)
from flowstack.usage.operations import Operation
from flowstack.usage.request_facts import NOTHING, RequestFacts

_DECIDING: Final = (b"content-type", b"content-encoding")
"""What decides how a body is read."""

_UNCLAIMED: Final = None, None, None

_MODERATION: Final = "omni-moderation-latest"
"""What moderates where a body names no model (OpenAI reference, moderations)."""

_STREAMS_USAGE: Final = frozenset(("chat", "completions"))
"""Families whose streams say what they used only where that is asked for."""


_SHORT: Final = 16_384
"""Tokens of an input up to which no model's price depends on how long it is."""

_HOUR: Final = 3600
"""Seconds; no price changes within one."""

_Question = tuple[str, str | None, int]
"""A model, a service tier, and the hour of a request, counted from 1970."""

_Line = tuple[float, float, float] | None
"""US dollars for a request, for a token of its input, and of its output; None where the model has no price."""


class Permission:
    """The rules for what a request asks for, made once.

    :param output_tokens: what is reserved for an answer that declares no maximum; None leaves it to the model.
    :param default_price: US dollars for a million tokens, reserved where a model has no price.
    :param inject_usage: whether usage is asked for where neither the key nor its limits say.
    :ivar lines: the cost of a short request at most, as :meth:`Prices.estimate` has it, which costs more to ask.
    """

    def __init__(
        self, prices: Prices, output_tokens: int | None, default_price: float | None, inject_usage: bool
    ) -> None:
        self.prices = prices
        self.output_tokens = output_tokens
        self.default_price = default_price
        self.inject_usage = inject_usage
        self.lines: Memo[_Question, _Line] = Memo(self._line, size=lambda asking: len(asking[0]) + len(asking[1] or ""))

    def _line(self, asking: _Question) -> _Line:
        model, tier, hour = asking
        estimate = self.prices.estimate
        fee = estimate(model, 0, 0, tier, hour * _HOUR)
        into, out = estimate(model, _SHORT, 0, tier, hour * _HOUR), estimate(model, 0, _SHORT, tier, hour * _HOUR)
        if fee is None or into is None or out is None:
            return None
        return fee, (into - fee) / _SHORT, (out - fee) / _SHORT

    def terms(
        self,
        key: Key,
        operation: Operation,
        plan: Plan | None,
        model: str | None,
        method: bytes,
        path: bytes,
        operators_key: bool,
        inject_usage: bool | None = None,
    ) -> Terms:
        """What the rules say of a request as far as its head tells.

        :param plan: the limits that stand for it.
        :param model: which the path names, where it does.
        :param operators_key: whether it goes out with the operator's provider key, which others use too.
        :param inject_usage: whether the upstream is to be asked for usage; None leaves it to all else.
        :raises ModelNotAllowed: the key may not use that model.
        :raises EndpointNotAllowed: the key is limited to models, tokens or money, neither the model nor the cost can be
            seen, and the key's line does not name the endpoint.
        """
        metered = plan is not None and plan.metered
        limited = bool(key.models) or metered
        if operation.model_in_path and key.models:
            check_model(key, model)
        if operation.hidden and limited and not names_endpoint(key, method, path):
            raise _hidden(key, operation.name)
        injects = operation.family in _STREAMS_USAGE and operation.generates and inject_usage is not False and (
            inject_usage or self.inject_usage or metered if key.inject_usage is None else key.inject_usage
        )  # fmt: skip
        private = operators_key and not names_endpoint(key, method, path)
        measure = measure_of(operation)
        return Terms(
            plan,
            injects=injects,
            overrules=injects and metered,
            narrows=metered and operation.generates,
            watched=limited or private or injects,
            reads=limited or private,
            _permission=self,
            _key=key,
            _operation=operation,
            _limited=limited,
            _private=private,
            _claims=metered and (operation.generates or measure.batch),
            _priced=plan is not None and plan.priced,
            _measure=measure,
            _usual=OUTPUT_TOKENS if self.output_tokens is None else self.output_tokens,
            _most=measure.most if self.output_tokens is None else self.output_tokens,
        )


@dataclass(frozen=True, eq=False)
class Terms:
    """On what terms a body passes that comes with a certain head.

    :ivar plan: the limits that stand for it, or None.
    :ivar injects: whether usage may be asked for in it.
    :ivar overrules: whether that is so whatever the client says of it, and what is unclear about it is refused.
    :ivar narrows: whether the answer may come in no other content coding than is decoded here.
    :ivar watched: whether anything but the model's name matters of it.
    :ivar reads: whether a body must be read before it passes: one that cannot be is refused.
    """

    plan: Plan | None
    injects: bool
    overrules: bool
    narrows: bool
    watched: bool
    reads: bool
    _permission: Permission
    _key: Key
    _operation: Operation
    _limited: bool  # whether it depends on the model or the cost that it asks for, whether it may pass
    _private: bool  # whether it may not refer to what is stored at the upstream
    _claims: bool  # whether it takes of tokens or money
    _priced: bool
    _measure: Measure
    _usual: int  # tokens of each answer that declares no maximum
    _most: int | None  # the same, for money; None leaves it to the model

    def unreadable(self, fault: str) -> FlowstackError:
        """The error for a body that must be read and cannot be.

        :param fault: as :attr:`flowstack.usage.request_facts.RequestFacts.fault` says it.
        """
        told = f"so that the request body must be read, and it cannot be: {fault}. Send one plain body that says each "
        if self._limited:
            return ModelNotAllowed(f"The Flowstack key {self._key.id} is limited, {told}thing once.")
        return EndpointNotAllowed(f"This request goes out with the operator's provider key, {told}thing once.")

    def judge(
        self, asked: RequestFacts, size: int, model: str | None, headers: ReceivedHeaders, when: float
    ) -> tuple[int | None, float | None, float | None]:
        """Let a request pass whose body has been read, as far as it is for the key to say; tell what it may use.

        :param size: bytes of the body.
        :param model: which is asked for, in the body or the path.
        :param when: Unix time of the request.
        :return: see :meth:`estimate`.
        :raises FlowstackError: see :meth:`check`.
        """
        self.check(asked, model, headers, True)
        return self.estimate(asked, size, model, when)

    def check(self, asked: RequestFacts, model: str | None, headers: ReceivedHeaders, ended: bool) -> None:
        """Let a body pass, as far as it has come and it is for the key to say.

        :param model: which is asked for, in the body or the path.
        :param ended: whether all of it has come. What is refused before is what would be refused whatever follows.
        :raises ModelNotAllowed: the key may not use a model that is named, or it cannot be told which those are.
        :raises EndpointNotAllowed: the body refers to what is stored at the upstream, or may do so, and the key's line
            does not name the endpoint.
        """
        if not self.reads:
            return
        key, inner = self._key, asked.inner
        vague = asked.vague if self.overrules else None
        if asked.fault is not None or asked.repeated or headers.repeated or vague is not None:
            fault = _fault_of(asked, headers) or vague
            if fault is not None:
                raise self.unreadable(fault)
        if self._private and (inner.references or asked.stored_prompt):
            raise _stored(key, inner.references or ("prompt",))
        if not self._limited:
            return
        if asked.stored_prompt and not key.endpoints:
            raise _hidden(key, "a stored prompt")
        batch = self._measure.batch
        if batch and ended and not inner.requests:
            raise self.unreadable("it is a batch without requests")
        if key.models:
            elsewhere = batch or self._operation.model_in_path
            if model not in key.memo.models and (model is not None or (ended and not elsewhere)):
                check_model(key, model)
            if inner.models or self._operation.model_in_path:
                for other in self._others(asked, model):
                    check_model(key, other)

    def estimate(
        self, asked: RequestFacts, size: int, model: str | None, when: float
    ) -> tuple[int | None, float | None, float | None]:
        """What a request may use.

        :param size: bytes of its body, or of what came of it.
        :return: tokens, as usual where no most is declared; what it may cost at most in US dollars, by the dearest
            model that it names; and what that many tokens cost, where that is less. None where that does not matter,
            and where a model has no price.
        """
        if not self._claims:
            return _UNCLAIMED
        used = estimated(asked, size, self._measure)
        output = output_of(used, self._usual)
        inner = asked.inner
        # A batch runs for hours, at the upstream's own pace: it takes nothing of a rate.
        tokens = 0 if self._measure.batch else used[0] + output
        if inner is NOTHING and not self._operation.model_in_path:
            if not self._priced:
                return tokens, None, None
            cost, least = self._costs(model, used, output, asked.service_tier, when)
        else:
            drawn = inner.draws * IMAGE_TOKENS
            tokens += drawn
            if not self._priced:
                return tokens, None, None
            models = self._others(asked, model)
            if model is not None or not models:
                models = {model, *models}
            each = [self._costs(one, used, output, asked.service_tier, when) for one in models]
            if any(cost is None for cost, _ in each):  # one without a price may be the dearest
                return tokens, None, None
            cost, least = max(cost or 0.0 for cost, _ in each), max(least or 0.0 for _, least in each)
            if drawn:
                names = inner.models or (DEFAULT_IMAGE_MODEL,)
                pictures = max(self._cost(name, 0, drawn, None, when) or 0.0 for name in names)
                cost, least = cost + pictures, least + pictures
        return tokens, cost, None if least is None or cost is None or least >= cost else least

    def estimate_speech(
        self, models: Iterable[str], tokens: int, prompt: int, when: float
    ) -> tuple[int | None, float | None]:
        """What a transcription may use: no more tokens of text are spoken than there are tokens of sound.

        :param models: one of which writes it down: the dearest counts.
        :param tokens: of sound.
        :param prompt: bytes of what that model is told beforehand.
        :return: tokens, and US dollars; None where that does not matter, and where a model has no price.
        """
        used = 2 * tokens + -(-prompt // BYTES_A_TOKEN)
        if not self._priced:
            return used, None
        costs = [self._cost(model, tokens + prompt, tokens, None, when) for model in models]
        return used, None if None in costs else max(cost or 0.0 for cost in costs)

    def assumed(self, row: Row, asked: RequestFacts, when: float) -> Row:
        """The row by which a request is charged: with a cost also where its usage has no known price.

        Then it is what these tokens cost at most, by the dearest of the models that were asked for, or by ``[estimates]
        price``. Where the answer does not say which tier served it, it is no less than in the one that was asked for.

        :param asked: what the request's body asked for.
        :param when: Unix time of the request.
        """
        cost, tier, wanted = row["cost_usd"], row["service_tier"], asked.service_tier
        if tier is not None or wanted == "auto":
            wanted = None
        if not self._priced or (cost is not None and wanted is None):
            return row
        permission, requested, no_output = self._permission, row["model_requested"], self._measure.output == 0
        models: Iterable[str | None] = (requested, *self._others(asked, requested))
        default_price = permission.default_price
        if cost is not None:
            models, default_price = (row["model"] or requested,), None
        prices = permission.prices
        usual = assumed_cost(row, prices, models, tier, when, default_price, no_output)
        if wanted is not None:
            dearest = assumed_cost(row, prices, models, wanted, when, default_price, no_output)
            if dearest is not None and dearest > max(usual or 0.0, cost or 0.0):
                return {**row, "cost_usd": dearest}
        return row if cost is not None or usual is None else {**row, "cost_usd": usual}

    def _costs(
        self, model: str | None, used: Estimate, output: int, service_tier: str | None, when: float
    ) -> tuple[float | None, float | None]:
        """What a request costs by one model: at most, and with so much output."""
        prompt, most_prompt = used[0], used[1]
        most = output if used[2] is not None else max(output, output_of(used, self._most_output(model)))
        if most_prompt <= _SHORT and model is not None and not self._measure.batch:
            line = self._permission.lines[model, service_tier, int(when) // _HOUR]
            if line is not None:
                fee, into, out = line
                return fee + into * most_prompt + out * most, fee + into * prompt + out * output
        cost = self._cost(model, most_prompt, most, service_tier, when)
        if cost is None or (most == output and most_prompt == prompt):
            return cost, cost
        return cost, self._cost(model, prompt, output, service_tier, when)

    def _most_output(self, model: str | None) -> int:
        """Tokens of an answer that declares no maximum."""
        most = self._most
        if most is None and model is not None:
            most = self._permission.prices.output_limit(model)
        return OUTPUT_TOKENS if most is None else most

    def _others(self, asked: RequestFacts, model: str | None) -> Set[str | None]:
        """The models that a body names in addition to the path's and to its own: each counts."""
        others = asked.inner.models
        if self._operation.model_in_path and asked.model is not None and asked.model != model:
            others = others | {asked.model}
        return others

    def _cost(self, model: str | None, prompt: int, output: int, service_tier: str | None, when: float) -> float | None:
        if model is None and self._operation.family == "moderations":
            model = _MODERATION
        permission = self._permission
        cost = None
        if model is not None:
            cost = permission.prices.estimate(model, prompt, output, service_tier, when, self._measure.batch)
        if cost is None and permission.default_price is not None:
            cost = (prompt + output) * permission.default_price / 1_000_000
        return cost


def _fault_of(asked: RequestFacts, headers: ReceivedHeaders) -> str | None:
    """Why not every parser would read a body alike, as far as it was read."""
    if asked.repeated:
        return f"it says {' and '.join(sorted(asked.repeated))} more than once"
    if headers.repeated and any(len(headers.all(name)) > 1 for name in _DECIDING):
        return "its Content-Type or Content-Encoding came more than once"
    return asked.fault


def _hidden(key: Key, what: str) -> EndpointNotAllowed:
    return EndpointNotAllowed(
        f"The Flowstack key {key.id} is limited in its models, tokens or money, and this request ({what}) may start "
        "work of which Flowstack sees neither. The operator can allow it by naming the endpoint in the key's endpoints."
    )


def _stored(key: Key, names: Iterable[str]) -> EndpointNotAllowed:
    return EndpointNotAllowed(
        "This request goes out with the operator's provider key, and refers to what is stored there, perhaps by "
        f"others: {shown(', '.join(sorted(names)))}. Send what it stands for instead. The operator can allow it by "
        f"naming the endpoint in the endpoints of the key {key.id}."
    )

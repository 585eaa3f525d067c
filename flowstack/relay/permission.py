"""Whether what a body asks for may pass, what it reserves, and whether usage is asked for in the client's place."""

from __future__ import annotations

from collections.abc import Iterable, Set

from attrs import frozen

from flowstack.errors import EndpointNotAllowed, FlowstackError, ModelNotAllowed
from flowstack.interfaces import IPlan
from flowstack.policy.headers import ReceivedHeaders
from flowstack.policy.keys import Key
from flowstack.policy.keys.permits import check_model, names_endpoint, shown
from flowstack.policy.operations import Operation
from flowstack.policy.pricing import Prices
from flowstack.policy.usage.asked import Asked
from flowstack.policy.usage.estimate import estimated_tokens

_DECIDING = (b"content-type", b"content-encoding")
"""What decides how a body is read."""

_NO_OUTPUT = frozenset(("embeddings", "moderations"))
"""Families whose answers are no tokens."""

_MODERATION = "omni-moderation-latest"
"""What moderates where a body names no model (OpenAI reference, moderations)."""

_STREAMS_USAGE = frozenset(("chat", "completions"))
"""Families whose streams say what they used only where that is asked for."""


@frozen(slots=True)
class Permission:
    """The rules for what a request asks for, made once.

    :ivar output_tokens: what is reserved for an answer of which no most is declared.
    :ivar default_price: US dollars for a million tokens, reserved where a model has no price.
    :ivar inject_usage: whether usage is asked for where neither the key nor its limits say.
    """

    prices: Prices
    output_tokens: int
    default_price: float | None
    inject_usage: bool

    def terms(
        self,
        key: Key,
        operation: Operation,
        plan: IPlan | None,
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
        return Terms(
            plan,
            injects=injects,
            watched=limited or private or injects,
            reads=limited or private,
            permission=self,
            key=key,
            operation=operation,
            limited=limited,
            private=private,
            claims=metered and operation.generates,
            priced=plan is not None and plan.priced,
            output_tokens=0 if operation.family in _NO_OUTPUT else self.output_tokens,
        )


@frozen(slots=True, eq=False)
class Terms:
    """On what terms a body passes that comes with a certain head.

    :ivar plan: the limits that stand for it, or None.
    :ivar injects: whether usage may be asked for in it.
    :ivar watched: whether anything but the model's name matters of it.
    :ivar reads: whether a body must be read before it passes: one that cannot be is refused.
    """

    plan: IPlan | None
    injects: bool
    watched: bool
    reads: bool
    _permission: Permission
    _key: Key
    _operation: Operation
    _limited: bool  # whether it depends on the model or the cost that it asks for, whether it may pass
    _private: bool  # whether it may not refer to what is stored at the upstream
    _claims: bool  # whether it takes of tokens or money
    _priced: bool
    _output_tokens: int

    def unreadable(self, fault: str) -> FlowstackError:
        """The error for a body that must be read and cannot be.

        :param fault: as :attr:`flowstack.policy.usage.asked.Asked.fault` says it.
        """
        told = f"so that the request body must be read, and it cannot be: {fault}. Send one plain body that says each "
        if self._limited:
            return ModelNotAllowed(f"The Flowstack key {self._key.id} is limited, {told}thing once.")
        return EndpointNotAllowed(f"This request goes out with the operator's provider key, {told}thing once.")

    def judge(
        self, asked: Asked, size: int, model: str | None, headers: ReceivedHeaders, when: float
    ) -> tuple[int | None, float | None]:
        """Let a request pass whose body has been read, as far as it is for the key to say; tell what it may use.

        :param size: bytes of the body.
        :param model: which is asked for, in the body or the path.
        :param when: Unix time of the request.
        :return: see :meth:`estimate`.
        :raises FlowstackError: see :meth:`check`.
        """
        self.check(asked, model, headers, True)
        return self.estimate(asked, size, model, when)

    def check(self, asked: Asked, model: str | None, headers: ReceivedHeaders, ended: bool) -> None:
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
        if asked.fault is not None or asked.repeated or headers.repeated:
            fault = _fault_of(asked, headers)
            if fault is not None:
                raise self.unreadable(fault)
        if self._private and (inner.references or asked.stored_prompt):
            raise _stored(key, inner.references or ("prompt",))
        if not self._limited:
            return
        if asked.stored_prompt and not key.endpoints:
            raise _hidden(key, "a stored prompt")
        if key.models:
            if model not in key.memo.models and not self._operation.model_in_path and (ended or model is not None):
                check_model(key, model)
            if inner.models or self._operation.model_in_path:
                for other in self._others(asked, model):
                    check_model(key, other)

    def estimate(self, asked: Asked, size: int, model: str | None, when: float) -> tuple[int | None, float | None]:
        """What a request may use.

        :param size: bytes of its body, or of what came of it.
        :return: the most tokens, and what they may cost in US dollars; None where that does not matter, or the model
            has no price.
        """
        if not self._claims:
            return None, None
        prompt, output = estimated_tokens(asked, size, self._output_tokens)
        cost = self._cost(model, prompt, output, asked.service_tier, when) if self._priced else None
        if self._priced and (asked.inner.models or self._operation.model_in_path):
            for other in self._others(asked, model):
                another = self._cost(other, prompt, output, asked.service_tier, when)
                # One without a price may be the dearest.
                cost = None if cost is None or another is None else max(cost, another)
        return prompt + output, cost

    def _others(self, asked: Asked, model: str | None) -> Set[str]:
        """The models that a body names beside the path's, and beside its own: each counts."""
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
            cost = permission.prices.estimate(model, prompt, output, service_tier, when)
        if cost is None and permission.default_price is not None:
            cost = (prompt + output) * permission.default_price / 1_000_000
        return cost


def _fault_of(asked: Asked, headers: ReceivedHeaders) -> str | None:
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

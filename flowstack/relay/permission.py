"""Whether what a body asks for may pass, what it reserves, and whether usage is asked for in the client's place."""

from __future__ import annotations

from attrs import frozen

from flowstack.errors import EndpointNotAllowed, ModelNotAllowed
from flowstack.interfaces import IPlan
from flowstack.policy.headers import ReceivedHeaders
from flowstack.policy.keys import Key
from flowstack.policy.keys.permits import check_model, names_endpoint
from flowstack.policy.operations import Operation
from flowstack.policy.pricing import Prices
from flowstack.policy.usage.asked import Asked
from flowstack.policy.usage.estimate import estimated_tokens

_DECIDING = (b"content-type", b"content-encoding")
"""What decides how a body is read."""

_NO_OUTPUT = frozenset(("embeddings", "moderations"))
"""Families whose answers are no tokens."""

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
        return Terms(
            plan,
            injects=injects,
            watched=limited or operators_key or injects,
            permission=self,
            key=key,
            operation=operation,
            limited=limited,
            private=operators_key and not names_endpoint(key, method, path),
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
    """

    plan: IPlan | None
    injects: bool
    watched: bool
    _permission: Permission
    _key: Key
    _operation: Operation
    _limited: bool  # whether it depends on the model or the cost that it asks for, whether it may pass
    _private: bool  # whether it may not refer to what is stored at the upstream
    _claims: bool  # whether it takes of tokens or money
    _priced: bool
    _output_tokens: int

    def judge(
        self, asked: Asked, size: int, model: str | None, headers: ReceivedHeaders, when: float
    ) -> tuple[int | None, float | None]:
        """Let a request pass whose body has been read, as far as it is for the key to say; tell what it may use.

        :param size: bytes of the body.
        :param model: which is asked for, in the body or the path.
        :param when: Unix time of the request.
        :return: the most tokens, and what they may cost in US dollars; None where that does not matter, or the model
            has no price.
        :raises ModelNotAllowed: the key may not use the model, or it cannot be told which it is.
        :raises EndpointNotAllowed: the body refers to what is stored at the upstream, and the key's line does not name
            the endpoint.
        """
        key = self._key
        if self._private and (asked.stored_context or asked.stored_prompt):
            raise EndpointNotAllowed(
                "This request goes out with the operator's provider key, and refers to an earlier response, a "
                "conversation or a prompt that is stored there, perhaps by others. The operator can allow it by naming "
                f"the endpoint in the endpoints of the key {key.id}."
            )
        if self._limited:
            if asked.fault is not None or asked.repeated or headers.repeated:
                _check_readable(key, asked, headers)
            if asked.stored_prompt and not key.endpoints:
                raise _hidden(key, "a stored prompt")
            if key.models and model not in key.memo.models and not self._operation.model_in_path:
                check_model(key, model)
        if not self._claims:
            return None, None
        prompt, output = estimated_tokens(asked, size, self._output_tokens)
        cost = None
        if self._priced:
            permission = self._permission
            if model is not None:
                cost = permission.prices.estimate(model, prompt, output, asked.service_tier, when)
            if cost is None and permission.default_price is not None:
                cost = (prompt + output) * permission.default_price / 1_000_000
        return prompt + output, cost


def _check_readable(key: Key, asked: Asked, headers: ReceivedHeaders) -> None:
    """Let a body pass that every parser reads alike, as far as it was read."""
    fault = asked.fault
    if asked.repeated:
        fault = f"it says {' and '.join(sorted(asked.repeated))} more than once"
    elif headers.repeated and any(len(headers.all(name)) > 1 for name in _DECIDING):
        fault = "its Content-Type or Content-Encoding came more than once"
    if fault is not None:
        raise ModelNotAllowed(
            f"The Flowstack key {key.id} is limited, so that the request body must be read, and it cannot be: "
            f"{fault}. Send one plain body that says each thing once."
        )


def _hidden(key: Key, what: str) -> EndpointNotAllowed:
    return EndpointNotAllowed(
        f"The Flowstack key {key.id} is limited in its models, tokens or money, and this request ({what}) may start "
        "work of which Flowstack sees neither. The operator can allow it by naming the endpoint in the key's endpoints."
    )

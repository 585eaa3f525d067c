"""Whether what a body asks for may pass, what it reserves, and whether usage is asked for in the client's place."""

from __future__ import annotations

from attrs import frozen

from flowstack.errors import EndpointNotAllowed, ModelNotAllowed
from flowstack.interfaces import IReservation
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
    """The rules for bodies, made once.

    :ivar output_tokens: what is reserved for an answer of which no most is declared.
    :ivar default_price: US dollars for a million tokens, reserved where a model has no price.
    :ivar inject_usage: whether usage is asked for where neither the key nor its limits say.
    """

    prices: Prices
    output_tokens: int
    default_price: float | None
    inject_usage: bool

    @staticmethod
    def limited(key: Key, reservation: IReservation | None) -> bool:
        """Whether it matters what a request of this key asks for."""
        return bool(key.models) or (reservation is not None and reservation.metered)

    def concerns(self, key: Key, operation: Operation) -> bool:
        """Whether anything but the model's name matters of what a request asks for that reserved nothing."""
        return bool(key.models) or self.may_inject(key, operation, None)

    def check_path(
        self,
        key: Key,
        operation: Operation,
        reservation: IReservation | None,
        model: str | None,
        method: bytes,
        path: bytes,
    ) -> None:
        """Let an operation pass whose path names the model, or of which neither model nor cost can be seen.

        :raises ModelNotAllowed: the key may not use the model.
        :raises EndpointNotAllowed: the key is limited to models, tokens or money, and its line does not name the
            endpoint.
        """
        if operation.model_in_path and key.models:
            check_model(key, model)
        if operation.hidden and self.limited(key, reservation) and not names_endpoint(key, method, path):
            raise _hidden(key, operation.name)

    @staticmethod
    def check_stored(key: Key, asked: Asked, method: bytes, path: bytes) -> None:
        """With the operator's key, let only a key pass whose line names the endpoint if others' objects may be read.

        :raises EndpointNotAllowed: the body refers to what is stored at the upstream, whoever stored it.
        """
        if (asked.stored_context or asked.stored_prompt) and not names_endpoint(key, method, path):
            raise EndpointNotAllowed(
                "This request goes out with the operator's provider key, and refers to an earlier response, a "
                "conversation or a prompt that is stored there, perhaps by others. The operator can allow it by naming "
                f"the endpoint in the endpoints of the key {key.id}."
            )

    def check(
        self,
        key: Key,
        operation: Operation,
        reservation: IReservation | None,
        asked: Asked,
        model: str | None,
        headers: ReceivedHeaders,
        when: float,
    ) -> bool:
        """Let a request pass whose body has been read; tell whether usage is to be asked for.

        :param model: which is asked for, in the body or the path.
        :param when: Unix time of the request.
        :raises ModelNotAllowed: the key may not use the model, or it cannot be told which it is.
        :raises FlowstackError: the limiter says no.
        """
        metered = reservation if reservation is not None and reservation.metered else None
        if metered is not None or key.models:
            if asked.fault is not None or asked.repeated or headers.repeated:
                _check_readable(key, asked, headers)
            if asked.stored_prompt and not key.endpoints:
                raise _hidden(key, "a stored prompt")
            if key.models and model not in key.memo.models and not operation.model_in_path:
                check_model(key, model)
        if metered is not None and operation.generates:
            prompt, output = estimated_tokens(asked, 0 if operation.family in _NO_OUTPUT else self.output_tokens)
            cost = None
            if metered.priced:
                if model is not None:
                    cost = self.prices.estimate(model, prompt, output, asked.service_tier, when)
                if cost is None and self.default_price is not None:
                    cost = (prompt + output) * self.default_price / 1_000_000
            metered.claim(prompt + output, cost)
        return asked.stream and asked.include_usage is None and self.may_inject(key, operation, reservation)

    def may_inject(self, key: Key, operation: Operation, reservation: IReservation | None) -> bool:
        """Whether usage may be asked for in this key's streams."""
        if operation.family not in _STREAMS_USAGE or not operation.generates:
            return False
        if key.inject_usage is not None:
            return key.inject_usage
        return self.inject_usage or (reservation is not None and reservation.metered)


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

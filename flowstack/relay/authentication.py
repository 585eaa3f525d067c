"""Who asks: the Flowstack key of a request, and that none goes to a provider."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress

from twisted.internet.defer import Deferred

from flowstack.errors import FlowstackError, InvalidKey, MalformedRequest, MisplacedKey
from flowstack.http.handshake import PROTOCOL, subprotocols
from flowstack.http.headers import Pair
from flowstack.http.heads import RequestHead
from flowstack.http.names import CREDENTIAL_SPELLINGS
from flowstack.interfaces import Keystore
from flowstack.keys import Key, digest, hide_keys, parse_flowstack_auth, unknown_key
from flowstack.keys.client_secrets import BEGINNING, ClientSecret, ClientSecrets
from flowstack.keys.misplaced import credential_holds_key, holds_whole_key, url_holds_key
from flowstack.keys.one_string import FIELDS, SEPARATOR, two_keys
from flowstack.keys.subprotocols import provider_key, take_keys
from flowstack.tokens import HOW_IT_LOOKS, ONE_KEY, ONE_STRING

_plain = re.compile(rb"(?:Bearer )?sk-[0-9A-Za-z_.-]*").fullmatch
"""A word of characters of which no decoding makes another."""

_client_secret_in = re.compile(rb"[Bb]earer +(ek_[!-~]{1,500})").fullmatch

MAX_KNOWN = 4096
"""Credentials that are remembered until the keystore changes, so that these are not hashed each time."""

MAX_KNOWN_BYTES = 1024
"""Longer ones are not."""


class Authenticator:
    """Finds the key of a request, and refuses a request that would show one to a provider.

    :param upstreams: how many there are.
    :param secrets: the client secrets that were made here.
    :ivar provider_keys: by the upstream's name, the operator's key that takes the place of the client's.
    :ivar generation: of the keystore, as of the last request.
    """

    def __init__(self, keystore: Keystore, upstreams: int, secrets: ClientSecrets) -> None:
        self._keystore = keystore
        self._secrets = secrets
        self._upstreams = upstreams
        self.provider_keys: Mapping[str, bytes] = {}
        self.generation = 0
        self._known: dict[bytes, Key] = {}

    def authenticate(self, headers: RequestHead, target: bytes) -> Key:
        """Who asks.

        :raises FlowstackError: a 401 or 400 that says which header, and how it should look.
        """
        by_name = headers.by_name
        if not self.provider_keys:
            self.check_credentials(headers)  # which finds the key where both are in one string
        own = by_name.get(b"flowstack-auth")
        if target.find(b"fsk-") >= 0:
            self._check_target(target)
        keystore = self._keystore
        if self.generation != keystore.generation:
            self.generation = keystore.generation
            self._known.clear()
        key = None if own is None or headers.repeated else self._known.get(own)
        if key is None:
            key = self._look_up(own, headers)
        # What takes more time to look through is looked through where there is something to refuse.
        if target.find(b"%") >= 0 or target.find(b"?") >= 0:
            self._check_target(target)
        return key

    def _look_up(self, own: bytes | None, headers: RequestHead) -> Key:
        """Find the key of a credential that was not seen since the last reload."""
        name = b"flowstack-auth"
        one_key = bool(self.provider_keys)
        if own is None:
            self.take_subprotocols(headers)
            if one_key:
                for field in FIELDS:
                    self._take_apart(headers, field)
            own = headers.by_name.get(name)
        secret = self.client_secret(headers) if own is None else None
        if secret is not None:
            return self._key_of(self._secrets.find(secret))
        if own is None and one_key:
            authorization = headers.by_name.get(b"authorization")
            if authorization is not None and b" sk-" not in authorization:
                name = b"authorization"  # an SDK that is given the Flowstack key as its api_key
            else:
                self.check_credentials(headers)
        token = parse_flowstack_auth(headers.all(name), one_key)
        key: Key | None = self._keystore.lookup(digest(token))
        if key is None:
            raise unknown_key(token)
        if own is not None and not headers.repeated and len(self._known) < MAX_KNOWN and len(own) <= MAX_KNOWN_BYTES:
            self._known[own] = key
        return key

    def client_secret(self, headers: RequestHead) -> bytes | None:
        """The client secret with which a request comes in the place of a key; None where it comes with none."""
        by_name = headers.by_name
        if b"flowstack-auth" in by_name:
            return None
        found = _client_secret(by_name.get(b"authorization", b""))
        if found is None and PROTOCOL in by_name:
            shown = (key for key in map(provider_key, subprotocols(headers)) if key is not None)
            found = next((secret for secret in shown if secret.startswith(BEGINNING)), None)
        return found

    def learn_secret(self, headers: RequestHead) -> Deferred[None] | None:
        """Ask other machines of the client secret with which a request comes, where it is not known here."""
        with suppress(FlowstackError):  # which is told when the key is looked for
            secret = self.client_secret(headers)
            return None if secret is None else self._secrets.learn(secret)
        return None

    def _key_of(self, known: ClientSecret | None) -> Key:
        """The key that made a client secret."""
        key = None if known is None else self._keystore.lookup(known.key)
        if key is None:
            raise InvalidKey(
                "This client secret is not known here: it was not made through this Flowstack, has expired, or its key "
                "was removed. Make a new one with POST /v1/realtime/client_secrets and a Flowstack key."
            )
        return key

    def take_subprotocols(self, headers: RequestHead) -> None:
        """Take the Flowstack key out of a WebSocket's subprotocols, where it stands among them.

        :raises MalformedRequest: the request shows another Flowstack key too.
        :raises MisplacedKey: one stands where the provider's should.
        """
        if PROTOCOL not in headers.by_name:
            return
        offered = subprotocols(headers)
        keys, left = take_keys(offered, self._keystore.lookup, bool(self.provider_keys))
        for name in left:
            credential = provider_key(name)
            if credential is not None and credential_holds_key(credential, self._keystore.lookup):
                raise MisplacedKey(self._advice("Sec-WebSocket-Protocol"))
        if not keys:
            return
        shown = headers.all(b"flowstack-auth")
        tokens = {*keys, *((parse_flowstack_auth(shown, bool(self.provider_keys)),) if shown else ())}
        if len(tokens) > 1 or len(headers.all(PROTOCOL)) > 1:
            raise MalformedRequest(
                "This request shows more than one Flowstack key, or more than one Sec-WebSocket-Protocol. Send one of "
                "each, with your key in it once."
            )
        headers.put(b"Sec-WebSocket-Protocol", b", ".join(left))
        if not shown:
            headers.put(b"flowstack-auth", b"Bearer " + keys[0])

    def _take_apart(self, headers: RequestHead, name: bytes) -> bool:
        """Of a field that holds both keys make the two fields for which it stands.

        :param name: in lower case.
        :return: whether it was one.
        :raises FlowstackError: the request shows another Flowstack key too.
        """
        value = headers.by_name.get(name, b"")
        if value.find(SEPARATOR) < 0 or (headers.repeated and len(headers.all(name)) > 1):
            return False
        found = two_keys(name, value, self._keystore.lookup)
        if found is None:
            return False
        token, rest = found
        shown = headers.all(b"flowstack-auth")
        if not shown:
            headers.put(b"flowstack-auth", b"Bearer " + token)
        elif parse_flowstack_auth(shown, bool(self.provider_keys)) != token:
            raise MalformedRequest(
                "This request shows two Flowstack keys that are not the same: one before the '~' in "
                f"{name.decode('ascii')}, and one elsewhere. Send your key once."
            )
        headers.put(name, rest)
        return True

    def check_credentials(self, headers: RequestHead) -> None:
        """A Flowstack key never goes to a provider: one that stands before the provider's is cut off.

        :raises MalformedRequest: there are two of a field, or two Flowstack keys.
        :raises MisplacedKey: one of them holds a Flowstack key.
        """
        by_name, repeated = headers.by_name, headers.repeated
        for name in CREDENTIAL_SPELLINGS.intersection(by_name):
            if repeated and len(headers.all(name)) > 1:
                raise MalformedRequest(
                    f"This request has {len(headers.all(name))} {name.decode('ascii')} headers. Send one, with the "
                    "provider's key."
                )
            value = by_name[name]
            if _is_providers(value):
                continue
            if value.find(SEPARATOR) >= 0 and self._take_apart(headers, name):
                value = by_name.get(name, b"")
            if not _is_providers(value) and credential_holds_key(value, self._keystore.lookup):
                quotes = " Send it without quotes." if b'"' in value or b"'" in value else ""
                raise MisplacedKey(self._advice(name.decode("ascii")) + quotes)

    def _check_target(self, target: bytes) -> None:
        """Nor does one in the URL.

        :raises MisplacedKey: it holds one.
        """
        if url_holds_key(target, self._keystore.lookup):
            raise MisplacedKey(
                "The URL holds what looks like a Flowstack key. Send it in the header 'Flowstack-Auth: Bearer fsk-...' "
                "only, and replace this key: URLs end up in logs."
            )

    def check_outgoing(self, pairs: list[Pair]) -> None:
        """Nor does a whole one in any other field.

        :raises MisplacedKey: one of them holds it.
        """
        for name, value in pairs:
            if holds_whole_key(value):
                raise MisplacedKey(self._advice(hide_keys(name.decode("latin-1"))))

    def _advice(self, name: str) -> str:
        found = f"The header {name} holds a Flowstack key. The Flowstack key belongs in '{HOW_IT_LOOKS}'"
        if not self.provider_keys:
            return (
                f"{found}, and the provider's own key in Authorization, or where the provider looks for it; or both "
                f"in one string, {ONE_STRING}."
            )
        if len(self.provider_keys) == self._upstreams:
            return f"{found}, or in {ONE_KEY}: this one key is enough."
        return (
            f"{found}. Where the operator holds the provider's key it may stand in Authorization too, and is enough; "
            "for the other upstreams also send the provider's own key."
        )


def _client_secret(authorization: bytes) -> bytes | None:
    found = _client_secret_in(authorization)
    return None if found is None else found[1]


def _is_providers(credential: bytes) -> bool:
    """Whether this is a provider's key at first sight: none of ours begins so, see ``parse_flowstack_auth``."""
    return _plain(credential) is not None and credential.find(b"fsk-") < 0

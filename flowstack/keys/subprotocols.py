"""Keys in a WebSocket's subprotocols: browsers can set no header but this one (``Sec-WebSocket-Protocol``).

``flowstack-auth.<Flowstack key>``, in any case, is Flowstack's own, and goes no further. In OpenAI's,
``openai-insecure-api-key.<provider key>``, a Flowstack key may stand before the provider's
(:mod:`flowstack.keys.one_string`); where the operator holds the provider's key, it may stand there alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from flowstack.keys.one_string import two_keys
from flowstack.tokens import PREFIX, PROVIDER_PREFIX, digest

OWN = b"flowstack-auth."
PROVIDERS = b"openai-insecure-api-key."
_ACCOUNTS = b"openai-organization.", b"openai-project."


def take_keys(
    offered: Iterable[bytes], is_known: Callable[[bytes], object], one_key: bool
) -> tuple[list[bytes], list[bytes]]:
    """Take the Flowstack keys out of what a client offers.

    :param is_known: tells of a SHA-256 whether the keystore holds it.
    :param one_key: whether the operator holds a provider's key.
    :return: the keys, and the subprotocols that are left.
    """
    keys: list[bytes] = []
    left: list[bytes] = []
    for name in offered:
        if name[: len(OWN)].lower() == OWN:
            keys.append(name[len(OWN) :])
            continue
        credential = provider_key(name)
        if credential is not None:
            found = two_keys(b"api-key", credential, is_known)
            if found is None and one_key and _is_ours(credential, is_known):
                found = credential, b""
            if found is not None:
                keys.append(found[0])
                if not found[1]:
                    continue
                name = name[: len(PROVIDERS)] + found[1]
        left.append(name)
    return keys, left


def provider_key(name: bytes) -> bytes | None:
    """The provider's key that a subprotocol shows, or None. What is before it counts in any case, as for a server that
    does not mind.
    """
    return name[len(PROVIDERS) :] if name[: len(PROVIDERS)].lower() == PROVIDERS else None


def _is_ours(credential: bytes, is_known: Callable[[bytes], object]) -> bool:
    if credential.startswith(PROVIDER_PREFIX):
        return False
    return credential.startswith(PREFIX.encode()) or bool(is_known(digest(credential)))


def without_credentials(offered: Sequence[bytes]) -> list[bytes]:
    """What is offered to an upstream that gets the operator's key in the place of the client's.

    An organization or a project goes with the client's key, as in :func:`flowstack.http.headers.replace_credentials`.
    """
    return [name for name in offered if not name.lower().startswith((PROVIDERS, *_ACCOUNTS))]

"""The secret that a client sends: how one is made, recognised, and read from ``Flowstack-Auth``.

A token is ``fsk-<12 id><40 secret><6 checksum>`` in base62. The 40 characters hold 238 bits, so a bare SHA-256 is
enough to store (there is nothing to guess at, and a slow hash would be paid on each request). The checksum is the
CRC32 of all that precedes it: a scanner knows a leaked key from a lookalike, and a typo is told from an unknown key,
without asking the keystore.

Any other token of visible ASCII works too, if its hash is in the keystore.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Callable, Sequence
from typing import Final
from urllib.parse import unquote_to_bytes

from flowstack.errors import FlowstackError, InvalidKey, MalformedRequest, MisplacedKey, MissingKey

PREFIX = "fsk-"
PROVIDER_PREFIX = b"sk-"
"""Of most providers' keys, and of no Flowstack key."""

ID_LENGTH = 12
SECRET_LENGTH = 40
CHECKSUM_LENGTH = 6
TOKEN_LENGTH = len(PREFIX) + ID_LENGTH + SECRET_LENGTH + CHECKSUM_LENGTH
MAX_TOKEN_BYTES = 512
"""The longest token that is looked up, ours or another's."""

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_OWN_ID = re.compile(rf"[0-9A-Za-z]{{{ID_LENGTH}}}").fullmatch
_UNBIASED = 256 - 256 % len(ALPHABET)

HOW_IT_LOOKS = "Flowstack-Auth: Bearer fsk-..."
ONE_KEY = "'Authorization: Bearer fsk-...', since the operator holds the provider's key"
ONE_STRING = "'Authorization: Bearer fsk-...~<the provider's key>'"

# RFC 9110 §11.4: credentials = auth-scheme [ 1*SP token68 ]; the scheme's case does not matter (§11.1). The token is
# taken more widely than token68, as tokens of others may be in the keystore.
_CREDENTIALS = re.compile(rb"[ \t]*[Bb][Ee][Aa][Rr][Ee][Rr] +([!-~]{1,%d})[ \t]*" % MAX_TOKEN_BYTES).fullmatch
_SCHEME = re.compile(rb"bearer(?![!-~])[ \t]*", re.IGNORECASE)
_PROVIDER_KEY_TEXT: Final = "sk-"

# A key, with all that follows it in one string; and what stands before a provider's key in one string, which may be a
# Flowstack key of the operator's own making.
_ANY_KEY: Final = re.compile(
    r"""(?:(?<![0-9A-Za-z])|(?<=%[0-9a-f][0-9a-f]))(f?sk-|ek_)[0-9A-Za-z_-]{8,}(?:(?:~|%7e)[^\s"',;]*)?"""
    r"""|(?<![^\s"',;])[^\s"',;]+(?=(?:~|%7e)sk-[0-9A-Za-z_-]{8})""",
    re.IGNORECASE,
)
_OUR_WORD = re.compile(rb"(?<![0-9A-Za-z_-])fsk-").search

# What people and their tools put around a key, or leave in its place. Only looked for where no key was found.
_QUOTES = "\"'`\\“”„‟‘’‚‛«»‹›＂＇"
_UNSEEN = re.compile(r"(?:[\s\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u2064\ufeff]|\\[nrt])*").fullmatch
_WHOLE_KEY = re.compile(rf"{PREFIX}[0-9A-Za-z]{{{TOKEN_LENGTH - len(PREFIX)}}}(?![0-9A-Za-z])").search
_SCHEME_ALONE = re.compile(r"[A-Za-z]+:?\s*").fullmatch
_NAMED_AGAIN = re.compile(r"bearer|flowstack-auth", re.IGNORECASE).search
_PLACEHOLDER = re.compile(
    r"\$\w+|\$?\{[^}]*\}+|\$\([^)]*\)|\$\{\{[^}]*\}\}|<[^>]*>|\[[^]]*\]|%\w+%|none|null|nil|undefined|"
    r"fsk-(?:\.+|…|x+|\*+)|your[-_ ].*",
    re.IGNORECASE,
).fullmatch
_MAX_EXPLAINED = 1024


def make_token(random_bytes: Callable[[int], bytes], key_id: str | None = None) -> tuple[str, str]:
    """Make a new key's id and token, or a new token for a key.

    :param random_bytes: gives that many bytes from a cryptographic source, such as :func:`os.urandom`.
    :param key_id: of the key; it stands in the token where it has the form of an id that was made here.
    :return: ``(id, token)``; the token is secret, the id, which is a part of it, is not.
    """
    text = ""
    length = ID_LENGTH + SECRET_LENGTH
    while len(text) < length:
        # 248 is the largest multiple of 62 in a byte: taking the rest of higher ones would favour eight characters.
        text += "".join(ALPHABET[byte % 62] for byte in random_bytes(length) if byte < _UNBIASED)
    own = key_id if key_id is not None and _OWN_ID(key_id) else text[:ID_LENGTH]
    body = PREFIX + own + text[ID_LENGTH:length]
    return key_id or own, body + _checksum(body)


def checksum_ok(token: str | bytes) -> bool:
    """Say whether this has a Flowstack token's form and its checksum is right; says nothing about the keystore."""
    try:
        text = token if isinstance(token, str) else token.decode("ascii")
        if len(text) != TOKEN_LENGTH or not text.startswith(PREFIX):
            return False
        return text[-CHECKSUM_LENGTH:] == _checksum(text[:-CHECKSUM_LENGTH])
    except UnicodeError:
        return False


def looks_like_flowstack_key(value: bytes) -> bool:
    """Say whether a header's value, with or without a scheme, holds a word that begins like a Flowstack key.

    For the headers that go to a provider: whatever begins with ``fsk-`` is ours or a mistake, so it must not leave.
    """
    return b"fsk-" in value and _OUR_WORD(value) is not None


def hide_keys(text: str) -> str:
    """Shorten whatever looks like a key, ours or a provider's or both in one string, to ``fsk-...`` or ``sk-...``: for
    what logs and people see of a client's words."""
    return _ANY_KEY.sub(r"\1...", text) if _PROVIDER_KEY_TEXT in text or "ek_" in text else text


def digest(token: bytes) -> bytes:
    """Return the SHA-256 of a token, 32 bytes: what the keystore holds in its place."""
    return hashlib.sha256(token).digest()


def parse_flowstack_auth(values: Sequence[bytes], one_key: bool = False) -> bytes:
    """Take the token from the values of all ``Flowstack-Auth`` headers of a request.

    :param one_key: whether the operator holds the provider's key, for what a person is told to do.
    :return: the token, 1 to :data:`MAX_TOKEN_BYTES` bytes of visible ASCII.
    :raises MissingKey: there is no such header.
    :raises MalformedRequest: there are several; no guess is made at which one counts.
    :raises MisplacedKey: it holds a provider's key.
    :raises InvalidKey: it is empty, too long, or not ``Bearer`` and a token.
    """
    if len(values) == 1:
        match = _CREDENTIALS(values[0])
        if match is not None:
            token = match[1]
            if not token.startswith(PROVIDER_PREFIX):
                return token
    raise _auth_fault(values, one_key)


def unknown_key(token: bytes) -> InvalidKey:
    """Make the error for a token that is not in the keystore; says so where it must have been mistyped or cut, or what
    stands around it."""
    if oddity := _oddity(token, True):
        return InvalidKey(oddity)
    if token.startswith(PREFIX.encode()) and not checksum_ok(token):
        size = len(token)
        found = f"it has {size} characters, not {TOKEN_LENGTH}" if size != TOKEN_LENGTH else "its checksum is wrong"
        return InvalidKey(
            f"The Flowstack key looks mistyped or cut: {found}. Copy the whole key again, from fsk- on, and send it as "
            f"'{HOW_IT_LOOKS}'."
        )
    return InvalidKey(
        "The Flowstack key is not known here. It may have been removed, or belong to another Flowstack. Ask "
        f"the person who gave it to you for a new one, and send it as '{HOW_IT_LOOKS}'."
    )


def _checksum(text: str) -> str:
    number = zlib.crc32(text.encode("ascii"))
    digits = ""
    for _ in range(CHECKSUM_LENGTH):
        number, digit = divmod(number, 62)
        digits = ALPHABET[digit] + digits
    return digits


def _auth_fault(values: Sequence[bytes], one_key: bool) -> FlowstackError:
    """Say what is wrong with the header, without repeating any of it: each part may be a secret."""
    if not values:
        return MissingKey(
            f"This request has no Flowstack-Auth header. Send your Flowstack key as '{HOW_IT_LOOKS}'"
            + (f", or as {ONE_KEY}." if one_key else f" next to the provider's key, or both as {ONE_STRING}.")
        )
    if len(values) > 1:
        return MalformedRequest(
            f"This request has {len(values)} Flowstack-Auth headers. Send exactly one: '{HOW_IT_LOOKS}'."
        )
    value = values[0].strip(b" \t")
    scheme = _SCHEME.match(value)
    token = value[scheme.end() :] if scheme else value
    if token.startswith(PROVIDER_PREFIX):
        return MisplacedKey(
            "Flowstack-Auth holds what looks like the provider's key (sk-...). "
            + ("The operator holds that one: leave yours out. " if one_key else "That one belongs in Authorization. ")
            + f"Flowstack-Auth takes your Flowstack key: '{HOW_IT_LOOKS}'."
        )
    if not token:
        return InvalidKey(
            "Flowstack-Auth holds no key; is the variable that should hold it set? It should look like "
            f"'{HOW_IT_LOOKS}'."
        )
    if b", " in token and _SCHEME.match(token.split(b", ", 1)[1]):
        return MalformedRequest(
            f"Flowstack-Auth holds several keys, joined by a comma. Send exactly one: '{HOW_IT_LOOKS}'."
        )
    if oddity := _oddity(token, scheme is not None):
        return InvalidKey(oddity)
    if scheme is None:
        return InvalidKey(
            f"Flowstack-Auth does not begin with the scheme Bearer and a space. It should look like '{HOW_IT_LOOKS}'."
        )
    if len(token) > MAX_TOKEN_BYTES:
        return InvalidKey(
            f"The Flowstack key has {len(token)} bytes; no key has more than {MAX_TOKEN_BYTES}. It should look "
            f"like '{HOW_IT_LOOKS}'."
        )
    return InvalidKey(
        "The key in Flowstack-Auth holds a space or a character that is not visible ASCII. It should look like "
        f"'{HOW_IT_LOOKS}', and nothing after it."
    )


def _oddity(value: bytes, is_token: bool) -> str | None:
    """Say what stands around a key, or in its place, by an oversight; None where nothing known does.

    :param is_token: whether this is what follows the scheme, and not a field whose scheme was not found.
    """
    if len(value) > _MAX_EXPLAINED:
        return None
    text = _as_read(value)
    word = text.strip(_QUOTES + " \t")
    if not word or _PLACEHOLDER(word):
        return (
            "Flowstack-Auth holds a placeholder in place of a key; is the variable that should hold it set? "
            f"It should look like '{HOW_IT_LOOKS}'."
        )
    found = _WHOLE_KEY(text)
    whole = found is not None and checksum_ok(found[0])
    before, behind = (text[: found.start()], text[found.end() :]) if found and whole else ("", "")
    if behind.startswith("~"):
        return (
            "Flowstack-Auth holds a Flowstack key and, after a ~, a provider's. Both in one string belong in "
            f"Authorization; Flowstack-Auth takes the part before the ~ alone: '{HOW_IT_LOOKS}'."
        )
    if text[0] in _QUOTES or text[-1] in _QUOTES:
        return f"The key in Flowstack-Auth is in quotes. Send it without them: '{HOW_IT_LOOKS}'."
    if not is_token and _SCHEME_ALONE(before) and not behind:
        return None
    if _NAMED_AGAIN(before):
        return f"The word Bearer, or the header's name, occurs twice in Flowstack-Auth. It should be '{HOW_IT_LOOKS}'."
    if not before and not behind:
        return None
    if _UNSEEN(before) and _UNSEEN(behind):
        return (
            "There is white space, or another invisible character, before or after the key in Flowstack-Auth, such as "
            f"the end of a copied line. Send the key alone: '{HOW_IT_LOOKS}'."
        )
    return f"There is something before or after the key in Flowstack-Auth. Send the key alone: '{HOW_IT_LOOKS}'."


def _as_read(value: bytes) -> str:
    """A value as a person sees it, white space at its ends left out as in a header, percent-encoding resolved."""
    value = unquote_to_bytes(value.strip(b" \t")) if b"%" in value else value.strip(b" \t")
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("cp1252", "replace")

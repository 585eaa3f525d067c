"""The bearer tokens that the admin listener may ask for (RFC 6750)."""

from __future__ import annotations

import hmac
import re
from hashlib import sha256
from pathlib import Path

from twisted.logger import Logger
from twisted.web.resource import Resource
from twisted.web.server import Request

from flowstack.admin.site import plain
from flowstack.errors import ParseError
from flowstack.files import read_secret
from flowstack.redact import shown

log = Logger()

MIN_CHARACTERS = 16
MAX_BYTES = 4096

_TOKEN = re.compile(rb"[A-Za-z0-9\-._~+/]+=*")  # RFC 6750 §2.1, b64token
_CREDENTIALS = re.compile(rb"(?i:bearer) +([A-Za-z0-9\-._~+/]+=*)")


class Token:
    """The token of a file, as of its last good reading.

    :param path: the file; the token alone in it, with or without a line's end.
    :param setting: that names the file, in ``[admin]``.
    :raises ParseError: the file cannot be used.
    :ivar digest: the token's SHA-256.
    """

    def __init__(self, path: Path, setting: str = "token_file") -> None:
        self._path = path
        self._setting = setting
        self.digest = _read(path, setting)

    def reload(self) -> None:
        """Read the file again. Where it cannot be used, the log says why, and the old token stays in force."""
        try:
            self.digest = _read(self._path, self._setting)
        except ParseError as error:
            log.error("the admin token was not reloaded, the old one stays in force: {fault}", fault=str(error))

    def is_(self, shown: bytes) -> bool:
        """Whether this is it."""
        # Digests have one length, so that the time that comparing takes says nothing of the token's.
        return hmac.compare_digest(sha256(shown).digest(), self.digest)

    def admits(self, request: Request) -> bool:
        """Whether a request shows it, in its one ``Authorization`` header."""
        token = bearer(request)
        return token is not None and self.is_(token)


def bearer(request: Request) -> bytes | None:
    """The token that a request shows in its one ``Authorization`` header."""
    values = request.requestHeaders.getRawHeaders(b"authorization", [])
    match = _CREDENTIALS.fullmatch(values[0]) if len(values) == 1 else None
    return match and match[1]


class Unauthorized(Resource):
    """The answer to a request without the token."""

    isLeaf = True

    def render(self, request: Request) -> bytes:
        """401, with the challenge of RFC 6750 §3."""
        request.setHeader(b"www-authenticate", b'Bearer realm="flowstack admin"')
        return plain(
            request,
            401,
            "Send this listener's token: 'Authorization: Bearer <token>'. Its file is [admin] token_file.\n",
        )


def _read(path: Path, setting: str) -> bytes:
    """The token's SHA-256."""
    try:
        token = read_secret(path, MAX_BYTES)
        if len(token) < MIN_CHARACTERS or not _TOKEN.fullmatch(token):
            raise ParseError(
                f"found no usable token in {shown(str(path))}, expected one line of at least {MIN_CHARACTERS} letters, "
                f"digits or -._~+/; make one: `(umask 077; openssl rand -hex 32 > {path})`"
            )
    except ParseError as error:
        raise ParseError(error.message, table="admin", key=setting) from None
    return sha256(token).digest()

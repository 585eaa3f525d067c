"""The bearer token that the admin listener may ask for (RFC 6750)."""

from __future__ import annotations

import hmac
import re
import stat
from hashlib import sha256
from pathlib import Path

from twisted.logger import Logger
from twisted.web.resource import Resource
from twisted.web.server import Request

from flowstack.admin.site import plain
from flowstack.files import NotRegular, read_regular

log = Logger()

LEAST_CHARACTERS = 16
MOST_BYTES = 4096

_TOKEN = re.compile(rb"[A-Za-z0-9\-._~+/]+=*")  # RFC 6750 §2.1, b64token
_CREDENTIALS = re.compile(rb"(?i:bearer) +([A-Za-z0-9\-._~+/]+=*)")


class TokenError(Exception):
    """The token's file cannot be used; the text says why, and holds nothing of it."""


class Token:
    """The token of a file, as of its last good reading.

    :param path: the file; the token alone in it, with or without a line's end.
    :raises TokenError: the file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._digest = _read(path)

    def reload(self) -> None:
        """Read the file anew. Where it cannot be used, the log says why, and the old token stays in force."""
        try:
            self._digest = _read(self._path)
        except TokenError as error:
            log.error("the admin listener's token was not taken over, the old one stays in force: {fault}", fault=error)

    def admits(self, request: Request) -> bool:
        """Whether a request shows it, in its one ``Authorization`` header."""
        values = request.requestHeaders.getRawHeaders(b"authorization", [])
        match = _CREDENTIALS.fullmatch(values[0]) if len(values) == 1 else None
        # Digests have one length, so that the time that comparing takes says nothing of the token's.
        return match is not None and hmac.compare_digest(sha256(match[1]).digest(), self._digest)


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


def _read(path: Path) -> bytes:
    """The token's SHA-256."""
    try:
        text, status = read_regular(path, MOST_BYTES)
    except NotRegular as error:
        raise TokenError(
            f"[admin] token_file: {path} is {error.strerror}; give the path of a file with the token"
        ) from None
    except OSError as error:
        raise TokenError(f"[admin] token_file: {path} could not be opened: {error.strerror}") from None
    if status.st_mode & (stat.S_IROTH | stat.S_IWOTH):
        raise TokenError(
            f"[admin] token_file: {path} has mode {stat.S_IMODE(status.st_mode):04o}, with which everyone on this "
            "machine knows or sets the token, expected one for its owner or group alone; run `chmod o= "
            f"{path}`, and put another token in it"
        )
    token = text.strip()
    if len(text) > MOST_BYTES or len(token) < LEAST_CHARACTERS or not _TOKEN.fullmatch(token):
        raise TokenError(
            f"[admin] token_file: {path} holds no usable token, expected one line of at least {LEAST_CHARACTERS} "
            f"letters, digits or -._~+/; make one: `(umask 077; openssl rand -hex 32 > {path})`"
        )
    return sha256(token).digest()

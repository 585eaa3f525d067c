"""Who may look at the page and its API, and who may change keys: tokens, sessions, and what is refused.

A browser shows its cookie to whatever page asks it to, as far as ``SameSite`` lets it, and another port of this host is
the same site. So a change needs the session's second secret, which no other page can read, and an ``Origin`` of this
host. A bearer token is shown on purpose, and needs neither.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable
from hashlib import sha256
from hmac import compare_digest
from math import ceil

from attrs import define, frozen
from twisted.internet.address import UNIXAddress
from twisted.logger import Logger
from twisted.web.server import Request

from flowstack.addresses import parse_address
from flowstack.admin.refusals import ForeignPage, NotAllowed, NotSignedIn, TooManyAttempts, WrongToken
from flowstack.admin.token import Token, bearer
from flowstack.config.settings import Admin
from flowstack.errors import ParseError
from flowstack.util import Throttle

log = Logger()

VIEWER, MANAGER = "viewer", "manager"

COOKIE = b"flowstack_session"

LIFETIME, IDLE = 12 * 3600.0, 2 * 3600.0
"""Seconds after which a session ends, and after which one ends that nobody used."""

MAX_SESSIONS = 256
"""One more ends the oldest."""

WINDOW = 60.0
"""Seconds for which a wrong token counts."""

OF_AN_ADDRESS, OF_ALL = 5, 50
"""Wrong tokens in that time; then none is looked at."""

LINK_LIFETIME = 600.0
"""Seconds for which a sign-in link can be used, once."""

MAX_LINKS = 64
"""One more takes the oldest away."""

_CHALLENGE = ((b"WWW-Authenticate", b'Bearer realm="flowstack admin"'),)
_CHANGES = frozenset((b"POST", b"PUT", b"PATCH", b"DELETE"))
_FORWARDED = (b"x-forwarded-for", b"forwarded", b"via", b"x-real-ip")


@define(slots=True)
class Session:
    """A browser that signed in.

    :ivar role: :data:`VIEWER` or :data:`MANAGER`.
    :ivar token: SHA-256 of the token that it signed in with; once that is another, the session is over.
    :ivar csrf: what each of its changes must show.
    :ivar made: seconds.
    :ivar used: seconds.
    """

    role: str
    token: bytes
    csrf: str
    made: float
    used: float


@frozen(slots=True)
class Link:
    """What a sign-in link stands for.

    :ivar token: SHA-256 of the token that it was asked for with; once that is another, the link is worth nothing.
    :ivar made: seconds.
    """

    role: str
    token: bytes
    made: float


@frozen(slots=True)
class Caller:
    """Who asks.

    :ivar role: None for nobody.
    :ivar address: for people.
    :ivar session: a browser's.
    """

    role: str | None
    address: str
    session: Session | None = None


class Access:
    """Says who a request is from.

    :param viewer: the token that lets look; None where there is none.
    :param manager: the token that lets change keys, too.
    :param manages: whether keys can be changed at all.
    :param clock: seconds, on a clock that never steps.
    """

    def __init__(self, viewer: Token | None, manager: Token | None, manages: bool, clock: Callable[[], float]) -> None:
        self._tokens = {role: token for role, token in ((MANAGER, manager), (VIEWER, viewer)) if token is not None}
        self.manages = manages
        self._clock = clock
        self._sessions: dict[bytes, Session] = {}  # by the SHA-256 of what the cookie holds, the oldest first
        self._links: dict[bytes, Link] = {}  # by the SHA-256 of their codes, the oldest first
        self._wrong: deque[tuple[float, str]] = deque()
        self._throttle = Throttle(clock, WINDOW)

    @property
    def asks(self) -> bool:
        """Whether there is a token at all."""
        return bool(self._tokens)

    def reload(self) -> None:
        """Read the tokens' files again. Sessions of one that is another now are over."""
        for token in self._tokens.values():
            token.reload()

    def admits(self, request: Request) -> bool:
        """Whether a scraper may pass: it shows one of the tokens, or there is none."""
        return not self._tokens or any(token.admits(request) for token in self._tokens.values())

    def caller(self, request: Request) -> Caller:
        """Who asks; a wrong token is refused.

        :raises TooManyAttempts: this address, or all, showed wrong tokens.
        :raises WrongToken: it is one.
        :raises ForeignPage: the request changes something, and another page may have had it sent.
        """
        address = address_of(request)
        if request.requestHeaders.hasHeader(b"authorization"):
            shown = bearer(request)
            return Caller(self._role_of(shown, address), address)
        session = self._session(request)
        if session is not None:
            if request.method in _CHANGES:
                _check_page(request, session.csrf)
            return Caller(session.role, address, session)
        if not self._tokens and _is_local(request):
            return Caller(VIEWER, address)
        return Caller(None, address)

    def check(self, caller: Caller, role: str) -> None:
        """See that a caller may do what takes a role.

        :raises NotSignedIn: nobody knows who that is.
        :raises NotAllowed: it may not.
        """
        if role == MANAGER and not self.manages:
            raise NotAllowed("Keys cannot be changed here. The operator can switch that on by [admin] manage_keys.")
        if caller.role is None:
            if not self._tokens:
                raise NotAllowed(
                    "This listener has no token, and shows what was used to this machine alone. The operator can set "
                    "[admin] token_file."
                )
            raise NotSignedIn(
                "Sign in with the token of this listener, or send it: 'Authorization: Bearer <token>'. Its file is "
                "[admin] token_file, or manage_token_file.",
                _CHALLENGE,
            )
        if role == MANAGER and caller.role != MANAGER:
            raise NotAllowed(
                "This token lets you look, and change nothing. Sign in with the one of [admin] manage_token_file."
            )

    def sign_in(self, request: Request, token: str) -> bytes:
        """Begin a session. Returns the cookie that the browser is to keep.

        :raises TooManyAttempts: as in :meth:`caller`; likewise the others.
        """
        _check_origin(request)
        address = address_of(request)
        return self._begin(request, self._role_of(token.encode("utf-8", "replace"), address), address)

    def link(self, caller: Caller) -> str:
        """Make the code of a link by which a browser signs in once.

        :raises NotAllowed: the caller showed no token: a session must not outlive itself.
        """
        if caller.role is None or caller.session is not None or caller.role not in self._tokens:
            raise NotAllowed("A sign-in link is made for who sends the token: 'Authorization: Bearer <token>'.")
        code = secrets.token_urlsafe(32)
        while len(self._links) >= MAX_LINKS:
            del self._links[next(iter(self._links))]
        digest = _digest(code.encode("ascii"))
        self._links[digest] = Link(caller.role, self._tokens[caller.role].digest, self._clock())
        return code

    def follow(self, request: Request, code: str) -> bytes:
        """Begin a session by a link's code, which is worth nothing from then on. Returns the cookie.

        :raises TooManyAttempts: as in :meth:`caller`; a code that is none counts as a wrong token.
        """
        _check_origin(request)
        address = address_of(request)
        self._check_attempts(address)
        link = self._links.pop(_digest(code.encode("utf-8", "replace")), None)
        if (
            link is None
            or self._clock() - link.made >= LINK_LIFETIME
            or not compare_digest(self._tokens[link.role].digest, link.token)
        ):
            self._count_wrong(address)
            raise WrongToken(
                "This link was used already, or is older than ten minutes. Sign in with the token, or make another."
            )
        return self._begin(request, link.role, address)

    def _begin(self, request: Request, role: str, address: str) -> bytes:
        secret = secrets.token_urlsafe(32)
        now = self._clock()
        while len(self._sessions) >= MAX_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        self._sessions[_digest(secret.encode("ascii"))] = Session(
            role, self._tokens[role].digest, secrets.token_urlsafe(32), now, now
        )
        log.info("a {role} signed in to the page from {address}", role=role, address=address)
        return _cookie(request, secret.encode("ascii"), int(LIFETIME))

    def sign_out(self, request: Request) -> bytes:
        """End the session, if there is one. Returns the cookie that takes the browser's away."""
        for value in _cookies(request):
            self._sessions.pop(_digest(value), None)
        return _cookie(request, b"", 0)

    def _check_attempts(self, address: str) -> None:
        now = self._clock()
        while self._wrong and now - self._wrong[0][0] >= WINDOW:
            self._wrong.popleft()
        own = [at for at, other in self._wrong if other == address]
        since = own[-OF_AN_ADDRESS] if len(own) >= OF_AN_ADDRESS else None
        if since is None and len(self._wrong) >= OF_ALL:
            since = self._wrong[-OF_ALL][0]
        if since is not None:
            wait = b"%d" % max(ceil(since + WINDOW - now), 1)
            raise TooManyAttempts(
                f"Too many wrong tokens were sent. Try again in {wait.decode('ascii')} seconds.",
                ((b"Retry-After", wait),),
            )

    def _count_wrong(self, address: str) -> None:
        self._wrong.append((self._clock(), address))
        if self._throttle.ready(address):
            log.warn("a wrong token was shown to the admin listener from {address}", address=address)

    def _role_of(self, shown: bytes | None, address: str) -> str:
        self._check_attempts(address)
        for role, token in self._tokens.items():
            if shown is not None and token.is_(shown):
                return role
        self._count_wrong(address)
        raise WrongToken(
            "This is not the token. It stands in the file that [admin] token_file or manage_token_file names."
            if self._tokens
            else "This listener has no token: [admin] token_file names none.",
            _CHALLENGE,
        )

    def _session(self, request: Request) -> Session | None:
        now = self._clock()
        for value in _cookies(request):
            digest = _digest(value)
            session = self._sessions.get(digest)
            if session is None:
                continue
            token = self._tokens.get(session.role)
            if (
                now - session.made < LIFETIME
                and now - session.used < IDLE
                and token is not None
                and compare_digest(token.digest, session.token)
            ):
                session.used = now
                return session
            del self._sessions[digest]
        return None


def access_of(settings: Admin, clock: Callable[[], float]) -> Access:
    """As the configuration says.

    :raises ParseError: a token's file cannot be used, or both have the same token.
    """
    viewer = None if settings.token_file is None else Token(settings.token_file)
    manager = None
    if settings.manage_token_file is not None:
        manager = Token(settings.manage_token_file, "manage_token_file")
    if viewer is not None and manager is not None and compare_digest(viewer.digest, manager.digest):
        raise ParseError(
            "found the same token as in token_file, expected another: who may look may not change",
            table="admin",
            key="manage_token_file",
        )
    return Access(viewer, manager, settings.manage_keys, clock)


def address_of(request: Request) -> str:
    """The client's address, without its port."""
    return getattr(request.getClientAddress(), "host", None) or "unix"


def _is_local(request: Request) -> bool:
    """Whether a request came from this machine, as far as can be told: what another server passed on did not."""
    if any(request.requestHeaders.hasHeader(name) for name in _FORWARDED):
        return False
    here = request.getHost()
    if isinstance(here, UNIXAddress):
        return True
    address = parse_address(here.host)
    return address is not None and address.is_loopback


def _check_page(request: Request, csrf: str) -> None:
    """See that a change was sent by the page of this session.

    :raises ForeignPage: it may not have been.
    """
    _check_origin(request)
    shown = request.requestHeaders.getRawHeaders(b"x-csrf-token", [])
    if len(shown) != 1 or not compare_digest(shown[0], csrf.encode("ascii")):
        raise ForeignPage("Changes need X-CSRF-Token with the csrf_token of GET /api/v1/session. Load the page anew.")


def _check_origin(request: Request) -> None:
    hosts = request.requestHeaders.getRawHeaders(b"host", [])
    for origin in request.requestHeaders.getRawHeaders(b"origin", []):
        scheme, _, authority = origin.partition(b"://")
        if scheme not in (b"http", b"https") or hosts != [authority]:
            raise ForeignPage(
                "The request came from a page of another origin than this host. A proxy in front must pass Host on as "
                "the browser sent it."
            )


def _digest(secret: bytes) -> bytes:
    return sha256(secret).digest()


def _cookies(request: Request) -> list[bytes]:
    """What the browser shows as its session; several where another path or host set one of the same name."""
    found = []
    for header in request.requestHeaders.getRawHeaders(b"cookie", []):
        for pair in header.split(b";"):
            name, _, value = pair.strip(b" \t").partition(b"=")
            if name == COOKIE and len(value) <= 128:
                found.append(value)
    return found[:4]


def _cookie(request: Request, value: bytes, seconds: int) -> bytes:
    secure = b"; Secure" if request.isSecure() else b""
    return b"%b=%b; Path=/; Max-Age=%d; HttpOnly; SameSite=Strict%b" % (COOKIE, value, seconds, secure)

"""Asks a provider what its organization used and what it costs, with an admin key that goes nowhere else."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import treq
from treq.client import HTTPClient
from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.ssl import Certificate, platformTrust, trustRootFromCertificates
from twisted.internet.task import deferLater
from twisted.web.client import Agent, BrowserLikePolicyForHTTPS
from twisted.web.http_headers import Headers

from flowstack.cli.billed import KINDS, WITH_MODEL, Billed, Charge, Malformed, Used, charge_of, others_of, results_of
from flowstack.cli.billed import used_of as used_of_result

TRIES = 5
"""Of each question, where the provider is busy, fails or cannot be reached."""

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds between two tries, doubled each time; the provider's ``retry-after`` goes before, up to the longest."""

ATTEMPT = 30.0
"""Seconds for one answer, head and body."""

MOST_PAGES = 1000
MOST_BYTES = 32 * 1024 * 1024
"""Of one answer."""

_BUSY = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
_CODE = re.compile(r"[a-z0-9_.-]{1,64}").fullmatch
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


class Fault(Exception):
    """The provider's figures cannot be had; the text says why, and holds nothing of the key."""


class _Again(Exception):
    """It may go well another time.

    :param wait: seconds that the provider asks for, or None.
    """

    def __init__(self, why: str, wait: float | None = None) -> None:
        super().__init__(why)
        self.wait = wait


class Organization:
    """A provider's administration API.

    :param base_url: as an upstream's, such as ``https://api.openai.com/v1``.
    :param key: the admin key.
    :param seconds: for all that is asked, from now on.
    :param ca_file: PEM file of the only authorities trusted; None means the system's.
    :param pause: waits so many seconds; replaced in tests.
    """

    def __init__(
        self,
        reactor: Any,
        base_url: str,
        key: bytes,
        seconds: float,
        ca_file: Path | None = None,
        pause: Callable[[float], Awaitable[Any]] | None = None,
    ) -> None:
        trust = platformTrust()
        if ca_file is not None:
            trust = trustRootFromCertificates([Certificate.loadPEM(pem) for pem in _PEM.findall(ca_file.read_bytes())])
        self._reactor = reactor
        self._seconds = seconds
        self._deadline = reactor.seconds() + seconds
        self._trouble = ""
        self._base = base_url.rstrip("/")
        self._key = key.decode("ascii")
        self._client = HTTPClient(Agent(reactor, BrowserLikePolicyForHTTPS(trust), connectTimeout=ATTEMPT / 2))
        self._pause = pause or (lambda seconds: deferLater(reactor, seconds))

    async def billed(self, first: int, last: int, projects: Sequence[str] = ()) -> Billed:
        """Ask for all kinds of usage, and for the costs.

        :param first: Unix time of the first day's beginning.
        :param last: that of the day behind the last.
        :param projects: ids of the only projects that count; none means all.
        :raises Fault: something of it cannot be had.
        """
        charges: list[Charge] = []
        used: list[Used] = []
        others: Counter[str] = Counter()
        absent = []
        for day, result in await self._all("costs", ("project_id", "line_item"), 180, first, last, projects) or []:
            charges.append(_read("costs", charge_of, day, result))
        for kind in KINDS:
            by = ("project_id", "model") if kind in WITH_MODEL else ("project_id",)
            found = await self._all(f"usage/{kind}", by, 31, first, last, projects, may_be_absent=kind != KINDS[0])
            if found is None:
                absent.append(kind)
                continue
            for day, result in found:
                others.update(_read(kind, others_of, result))
                if kind in WITH_MODEL:
                    used.append(_read(kind, used_of_result, day, result))
        return Billed(used, charges, dict(others), absent)

    async def _all(
        self,
        name: str,
        by: Sequence[str],
        limit: int,
        first: int,
        last: int,
        projects: Sequence[str],
        may_be_absent: bool = False,
    ) -> list[tuple[str, Any]] | None:
        """All pages' results; None where the provider has no such endpoint, and need not have."""
        found: list[tuple[str, Any]] = []
        seen: set[str] = set()
        query = [("start_time", str(first)), ("end_time", str(last)), ("bucket_width", "1d"), ("limit", str(limit))]
        query += [("group_by", one) for one in by] + [("project_ids", one) for one in projects]
        cursor = None
        for _ in range(MOST_PAGES):
            page = await self._persist(name, query if cursor is None else [*query, ("page", cursor)], may_be_absent)
            if page is None:
                return None
            results, cursor = _read(name, results_of, page, first, last)
            found += results
            if cursor is None:
                return found
            if cursor in seen:
                raise Fault(f"{self._where(name)} has pages in a circle: one names an earlier page as its next")
            seen.add(cursor)
        raise Fault(f"{self._where(name)} has more than {MOST_PAGES} pages: ask for fewer days")

    async def _persist(self, name: str, query: list[tuple[str, str]], may_be_absent: bool) -> Any:
        """Ask for a page, again where that may help."""
        pause = FIRST_PAUSE
        for number in range(1, TRIES + 1):
            most = min(ATTEMPT, self._left())
            began = self._reactor.seconds()
            try:
                return await Deferred.fromCoroutine(self._ask(name, query, may_be_absent)).addTimeout(
                    most, self._reactor
                )
            except (TimeoutError, _Again) as error:
                # What is cancelled for its time fails in many ways, by where it was.
                late = self._reactor.seconds() - began >= most
                why = f"no answer within {most:.3g} s" if late else str(error)
                wait = error.wait if isinstance(error, _Again) else None
                self._trouble = f" (the last try: {why})"
            if number == TRIES:
                raise Fault(f"{self._where(name)}: {why}; tried {TRIES} times")
            wait = pause * (1 + random.random()) if wait is None else wait
            await self._pause(min(LONGEST_PAUSE, wait, self._left()))
            pause *= 2
        raise AssertionError("the last try returns or raises")

    def _left(self) -> float:
        """Seconds that are left.

        :raises Fault: none are.
        """
        left = self._deadline - self._reactor.seconds()
        if left <= 0:
            raise Fault(
                f"{self._base} has not answered all within {self._seconds:g} s{self._trouble}; see --timeout"
            )
        return float(left)

    async def _ask(self, name: str, query: list[tuple[str, str]], may_be_absent: bool) -> Any:
        headers = Headers({"Authorization": [f"Bearer {self._key}"], "Accept": ["application/json"]})
        try:
            response = await self._client.get(
                self._where(name), params=query, headers=headers, allow_redirects=False, unbuffered=True
            )
            text = await _body(response)
        except Fault:
            raise
        except Exception as error:  # of the network: each layer has its own
            raise _Again(self._shown(_words(error))) from None
        status = response.code
        if status == 200:
            try:
                return json.loads(text, parse_float=Decimal)
            except (ValueError, RecursionError):
                raise Fault(f"{self._where(name)} answered something that is not JSON") from None
        code = self._code(text)
        if status in _BUSY:
            raise _Again(f"it answered {status}{code}", _retry_after(response.headers))
        if 300 <= status < 400:
            raise Fault(f"{self._where(name)} redirects ({status}); an admin key is not taken elsewhere: see --url")
        if status in (401, 403):
            raise Fault(
                f"{self._where(name)} refused the key ({status}{code}): it must be an admin key of the organization, "
                "with the right to read usage (api.usage.read)"
            )
        if status == 404 and may_be_absent:
            return None
        raise Fault(f"{self._where(name)} answered {status}{code}, expected 200: is this the provider's base URL?")

    def _where(self, name: str) -> str:
        return f"{self._base}/organization/{name}"

    def _code(self, text: bytes) -> str:
        """The error's code, where it is a plain word; whatever else an error says may repeat the key."""
        try:
            code = json.loads(text)["error"]["code"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return ""
        plain = isinstance(code, str) and _CODE(code) and code not in self._key and self._key not in code
        return f", {code}" if plain else ""

    def _shown(self, words: str) -> str:
        return words.replace(self._key, "...")


def _read(name: str, read: Callable[..., Any], *values: Any) -> Any:
    """Read a part of an answer.

    :raises Fault: it is malformed.
    """
    try:
        return read(*values)
    except Malformed as malformed:
        raise Fault(f"organization/{name}: {malformed}") from None


async def _body(response: Any) -> bytes:
    text = bytearray()

    def more(piece: bytes) -> None:
        text.extend(piece)
        if len(text) > MOST_BYTES:
            raise Fault(f"an answer has more than {MOST_BYTES} bytes")

    await treq.collect(response, more)
    return bytes(text)


def _words(error: Exception) -> str:
    """What went wrong on the way, from the innermost of Twisted's wrappings."""
    reasons = getattr(error, "reasons", None)
    if reasons:
        return _words(reasons[-1].value)
    return f"cannot be reached: {str(error) or type(error).__name__}"


def _retry_after(headers: Any) -> float | None:
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        for value in headers.getRawHeaders(name) or ():
            if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", value, re.ASCII):
                return float(value) * unit
    return None

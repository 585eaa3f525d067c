"""What the holder of a key sees on the proxy's own listener: the page of its use, and the figures for it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any
from urllib.parse import parse_qs

from twisted.internet.defer import Deferred

from flowstack.admin.assets import Assets
from flowstack.admin.refusals import BadParameter, Busy
from flowstack.admin.schemas import Schema, from_query, text
from flowstack.http.headers import Pair
from flowstack.interfaces import Answered, Asks

BEGIN = b"/flowstack/"

MOST_WAITING = 8
"""Questions of all holders together: they must not keep the operator from asking."""

SECONDS = 5.0
"""That a question may take."""

_QUERY: dict[str, Schema] = {"since": text(64), "until": text(64), "by": {"type": "string", "maxLength": 64}}


class Holder:
    """See :class:`flowstack.interfaces.HolderPages`.

    :param ask: asks the process that reads files.
    """

    def __init__(self, ask: Asks) -> None:
        self._ask = ask
        self._asking: set[str] = set()

    @cached_property
    def _assets(self) -> Assets:
        return Assets()

    def page(self, path: bytes, accepted: Iterable[bytes]) -> tuple[list[Pair], bytes] | None:
        """The page, or one of its files; None where there is none of this path."""
        name = path.removeprefix(BEGIN).decode("ascii", "replace")
        if not name:
            return self._assets.page("holder.html", accepted)
        before, _, file = name.partition("/")
        return self._assets.file(file, accepted) if before == "static" else None

    def usage(self, key_id: str, query: bytes) -> Deferred[Answered]:
        """What a key used: a report of its rows alone.

        :raises BadParameter: of the query.
        :raises Busy: this key's holder, or others, ask already.
        """
        asked: dict[str, Any] = {"by": "", "key": key_id}
        for name, values in parse_qs(query.decode("ascii", "replace"), keep_blank_values=True).items():
            if name not in _QUERY:
                raise BadParameter(name[:64], f"there is no such parameter, but {', '.join(_QUERY)}.")
            if len(values) != 1:
                raise BadParameter(name, f"found it {len(values)} times, expected it once.")
            asked[name] = from_query(name, values[0], _QUERY[name])
        if len(self._asking) >= MOST_WAITING or key_id in self._asking:
            raise Busy("Other questions wait already. Try again in a moment.", ((b"Retry-After", b"1"),))
        self._asking.add(key_id)

        def answered(outcome: Any) -> Any:
            self._asking.discard(key_id)
            return outcome

        return self._ask("usage", asked, SECONDS).addBoth(answered)

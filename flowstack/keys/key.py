"""A key and a group of keys, as the rest of Flowstack sees them, and whether a key may be used at a given time."""

from __future__ import annotations

from datetime import UTC, date, datetime

from attrs import evolve, field, frozen

from flowstack.errors import KeyDisabled, KeyExpired
from flowstack.notation import Budget, Network

DAY = 86_400.0
EPOCH_DAY = date(1970, 1, 1).toordinal()

@frozen(slots=True)
class Group:
    """One line of the keystore file that begins with ``@``: limits that the keys which name it share.

    :ivar name: 1 to 64 of ``A-Z a-z 0-9 _ . -``, without the ``@``.
    :ivar rpm: as in :class:`Key`, of all these keys together; likewise the others.
    :ivar note: for the people who look after the file.
    """

    name: str
    rpm: int | None = None
    tpm: int | None = None
    max_parallel: int | None = None
    budget: Budget | None = None
    note: str | None = None

    @property
    def limited(self) -> bool:
        """Whether it has a limit at all."""
        return not (self.rpm is None and self.tpm is None and self.max_parallel is None and self.budget is None)


class Memo:
    """What one key was allowed before, so that the same question costs a look into a set; see
    :mod:`flowstack.keys.permits`, which bounds each set. It is no part of the key's value.
    """

    __slots__ = ("addresses", "endpoints", "models")

    def __init__(self) -> None:
        self.addresses: set[str] = set()
        self.endpoints: set[tuple[bytes, bytes]] = set()
        self.models: set[str] = set()


@frozen(slots=True)
class Key:
    """One line of the keystore file. An empty tuple or None means that there is no such restriction.

    :ivar id: 1 to 64 of ``A-Z a-z 0-9 _ . -``; not secret.
    :ivar digest: SHA-256 of the token, 32 bytes.
    :ivar owner: who uses it, for the ledger.
    :ivar expires_at: UTC Unix seconds, the first instant at which it is no longer valid.
    :ivar models: patterns of model names, in which ``*`` stands for any run of characters.
    :ivar endpoints: ``/path`` or ``METHOD:/path`` patterns, ``*`` as in models.
    :ivar upstreams: names of upstreams in the configuration.
    :ivar rpm: the most requests in any 60 seconds.
    :ivar tpm: the most tokens in any 60 seconds.
    :ivar max_parallel: the most requests in flight.
    :ivar group: the name of the group whose limits it shares with other keys.
    :ivar shared: that group, where it has a limit. A key that was read from its line alone knows the name only.
    :ivar allow_ip: networks from which clients may come.
    :ivar note: for the people who look after the file.
    :ivar inject_usage: whether streams are asked for their usage; None leaves it to what the limits need.
    :ivar previous: SHA-256 of the token that a rotation replaced, valid until ``previous_until``; both or neither.
    :ivar previous_until: UTC Unix seconds, the first instant at which the replaced token is no longer valid.
    :ivar superseded: whether this is the key as its replaced token sees it: see :meth:`as_superseded`.
    :ivar memo: what it was allowed before.
    """

    id: str
    digest: bytes = field(repr=False)
    owner: str | None = None
    expires_at: float | None = None
    disabled: bool = False
    models: tuple[str, ...] = ()
    endpoints: tuple[str, ...] = ()
    upstreams: tuple[str, ...] = ()
    rpm: int | None = None
    tpm: int | None = None
    max_parallel: int | None = None
    budget: Budget | None = None
    group: str | None = None
    shared: Group | None = None
    allow_ip: tuple[Network, ...] = ()
    note: str | None = None
    inject_usage: bool | None = None
    previous: bytes | None = field(default=None, repr=False)
    previous_until: float | None = None
    superseded: bool = False
    memo: Memo = field(init=False, eq=False, repr=False, factory=Memo)

    def as_superseded(self) -> Key:
        """Return the key for whoever still shows the token that a rotation replaced.

        It is the same key, with the same id and so with the same limits; it only expires when the grace ends.
        """
        until = self.previous_until if self.previous_until is not None else 0.0
        expires_at = until if self.expires_at is None else min(until, self.expires_at)
        digest = self.digest if self.previous is None else self.previous
        return evolve(self, digest=digest, expires_at=expires_at, previous=None, previous_until=None, superseded=True)


def check_usable(key: Key, now: float) -> None:
    """Let a key pass that is neither disabled nor expired.

    :param now: UTC Unix seconds.
    :raises KeyDisabled: its line says ``disabled``.
    :raises KeyExpired: its ``expires`` has passed.
    """
    if key.disabled:
        raise KeyDisabled(
            f"The Flowstack key {key.id} is disabled. Ask the person who gave it to you to enable it, or for another."
        )
    if key.expires_at is not None and now >= key.expires_at:
        if key.superseded:
            raise KeyExpired(
                f"The secret of the Flowstack key {key.id} was replaced, and this old one was valid through "
                f"{expires_text(key.expires_at)} (UTC). Ask the person who gave it to you for the new one."
            )
        raise KeyExpired(
            f"The Flowstack key {key.id} expired: it was valid through {expires_text(key.expires_at)} (UTC). Ask the "
            "person who gave it to you for a new one."
        )


def expires_text(expires_at: float) -> str:
    """Write an expiry as the keystore file does: the last valid day where it is one, else the RFC 3339 instant in UTC.

    :param expires_at: UTC Unix seconds, after 1970-01-01 and up to the end of the year 9999.
    """
    days, rest = divmod(expires_at, DAY)
    if rest == 0:
        return date.fromordinal(EPOCH_DAY + int(days) - 1).isoformat()
    return datetime.fromtimestamp(expires_at, UTC).isoformat().replace("+00:00", "Z")

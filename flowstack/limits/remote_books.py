"""What is used of limits that several machines count together, for whoever asks and may wait for the answer.

The Redis project's own client asks here: it blocks, and knows TLS, Sentinels and passwords.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from flowstack.config.settings import Limits, Settings, Shared
from flowstack.errors import ParseError
from flowstack.keys import Group, Key
from flowstack.limits.books import Books, Standing, open_books
from flowstack.limits.counters import Counters, CountersError
from flowstack.limits.link import library, read_password
from flowstack.limits.plans import slot_name
from flowstack.limits.restore import open_counters
from flowstack.limits.told import MONEY, Untold, ends_ms, key_of, mirror, numbers_of, plain, time_of, told_of

SECONDS: Final = 2.0
"""For connecting, and for each answer."""


class RemoteBooks(Books):
    """As :class:`flowstack.limits.books.Books`, of what Redis has.

    :param ask: calls one of the functions, with keys and arguments; raises CountersError.
    """

    def __init__(self, ask: Any) -> None:
        self._ask = ask
        self._now = 0.0
        self._call("show", [], [])
        self._table: Counters = open_counters(None, 1)
        super().__init__(self._table, self._time, self._time)

    def _time(self) -> float:
        return self._now

    def _call(self, function: str, keys: Sequence[bytes], arguments: Sequence[bytes]) -> list[Any]:
        answer: list[Any] = self._ask(function, keys, arguments)
        try:
            self._now = time_of(answer)
        except Untold as error:
            raise CountersError(f"Redis cannot be asked for the limits' counters: {error}.") from None
        return answer

    def standings(self, name: str, limited: Key | Group | Limits, settings: Settings) -> list[Standing]:
        """Of ``Books``; one question to Redis.

        :raises CountersError: Redis does not answer it.
        """
        some = told_of(name, limited, settings, self._now)
        if some:
            answer = self._call("show", [told.key for told in some], [told.kind for told in some])
            try:
                mirror(self._table, some, answer[1] if len(answer) == 2 else None, self._now)
            except Untold as error:
                raise CountersError(f"Redis cannot be asked for the limits' counters: {error}.") from None
        return super().standings(name, limited, settings)

    def reset(self, standing: Standing) -> int:
        """Of ``Books``.

        :raises CountersError: Redis does not answer; whether it was done is not known.
        """
        if standing.period is None:
            return 0
        key = key_of(MONEY, slot_name(standing.name, standing.scope), standing.period)
        answer = self._call("reset", [key], [b"%d" % ends_ms(standing.period)])
        try:
            (used,) = numbers_of(answer, 1, 1)
        except Untold as error:
            raise CountersError(f"Redis cannot be asked for the limits' counters: {error}.") from None
        return max(used, 0)


@contextmanager
def books_of(settings: Settings, state: Path | None) -> Iterator[Books | None]:
    """The books of a service, or of all machines where these count together; None where nothing was ever counted.

    :param state: the service's state directory.
    :raises CountersError: they cannot be read; the text says why.
    """
    if settings.shared.redis is None:
        with nullcontext() if state is None else open_books(state) as books:
            yield books
        return
    with _asked(settings.shared) as ask:
        yield RemoteBooks(ask)


def where_of(shared: Shared) -> str:
    """Where Redis is, for messages: never a credential."""
    assert shared.redis is not None
    url = urlsplit(shared.redis)
    return f"{url.hostname}:{url.port}"


@contextmanager
def client_of(shared: Shared) -> Iterator[Any]:
    """A client of Redis that blocks; where Sentinels are configured, of the master that they name.

    :raises CountersError: there cannot be one; or one of redis' errors leaves the block.
    """
    try:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry
        from redis.sentinel import Sentinel
    except ImportError:
        raise CountersError(
            "[shared] redis needs a package that is not installed: pip install 'flowstack[redis]'."
        ) from None
    assert shared.redis is not None
    url = urlsplit(shared.redis)
    # Without its ten attempts: a reset that is not answered may have been done.
    bounds = {"socket_timeout": SECONDS, "socket_connect_timeout": SECONDS, "retry": Retry(NoBackoff(), 0)}
    options: dict[str, Any] = {**bounds, "db": int(url.path.strip("/")), "username": url.username, "protocol": 2}
    try:
        if shared.redis_password_file is not None:
            options["password"] = read_password(shared.redis_password_file).decode("ascii")
    except ParseError as error:
        raise CountersError(f"[shared] redis_password_file: {error}.") from None
    if url.scheme == "rediss":
        options |= {"ssl": True, "ssl_check_hostname": True}
        if shared.redis_ca_file is not None:
            options["ssl_ca_certs"] = str(shared.redis_ca_file)
    try:
        if shared.redis_sentinels:
            pairs = [one.rpartition(":") for one in shared.redis_sentinels]
            sentinels = [(host.strip("[]"), int(port)) for host, _, port in pairs]
            known: Any = Sentinel(sentinels, sentinel_kwargs=bounds)  # type: ignore[no-untyped-call]
            client = known.master_for(str(url.hostname), **options)
        else:
            client = redis.Redis(host=str(url.hostname), port=url.port or 0, **options)
        with client:
            yield client
    except redis.RedisError as error:
        raise CountersError(_cannot(where_of(shared), error)) from None


@contextmanager
def _asked(shared: Shared) -> Iterator[Any]:
    """Connect to Redis with the functions that the service uses.

    :raises CountersError: that cannot be done.
    """
    with client_of(shared) as client:
        import redis

        name, text = library()

        def ask(function: str, keys: Sequence[bytes], arguments: Sequence[bytes]) -> Any:
            try:
                return client.execute_command("FCALL", f"{name}_{function}", len(keys), *keys, *arguments)
            except redis.RedisError as error:
                raise CountersError(_cannot(where_of(shared), error)) from None

        try:
            client.execute_command("FUNCTION", "LOAD", text)
        except redis.ResponseError as error:
            if "already exists" not in str(error):
                raise
        yield ask


def _cannot(where: str, error: Exception) -> str:
    why = plain(str(error).rstrip(".")) or type(error).__name__
    return f"Redis at {where} cannot be asked for the limits' counters: {why}."

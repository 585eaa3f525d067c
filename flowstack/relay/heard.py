"""Which calls are heard now, told among all workers by locks: these end with the process that holds them."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from twisted.logger import Logger

from flowstack.files import open_regular, write
from flowstack.keys import digest

log = Logger()

_KEY = 32
"""Bytes of a SHA-256."""


class Heard:
    """Those of this process, and a look at the others'.

    :param directory: where a file stands for each, which is locked for as long as it is heard; what a killed process
        leaves there is removed by :func:`flowstack.keys.client_secrets.prune_secrets`. None: others' are not known.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._held: dict[bytes, tuple[bytes, int | None]] = {}

    def hold(self, upstream: str, identity: bytes, key: bytes, until: float) -> bool:
        """A call is heard from now on. Never raises: what cannot be told to the others is known here.

        :param key: the SHA-256 of the Flowstack key's token that began it.
        :param until: Unix seconds, when it is over at the latest.
        :return: whether it is this call's to let go; not, where one with this id is heard already.
        """
        name = _name(upstream, identity)
        if name in self._held:
            return False
        self._held[name] = key, self._locked(name, key, until)
        return True

    def let_go(self, upstream: str, identity: bytes) -> None:
        """It is heard no more."""
        name = _name(upstream, identity)
        _, descriptor = self._held.pop(name)
        if descriptor is not None and self._directory is not None:
            with suppress(OSError):
                os.unlink(self._directory / name.hex())
            os.close(descriptor)

    def is_heard(self, upstream: str, identity: bytes, key: bytes) -> bool:
        """Whether a call that this key began is heard now, by whichever worker."""
        name = _name(upstream, identity)
        held = self._held.get(name)
        if held is not None:
            return held[0] == key
        if self._directory is None:
            return False
        try:
            descriptor = open_regular(self._directory / name.hex(), follow=False)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return os.pread(descriptor, _KEY + 1, 0) == key
        except OSError:
            pass
        finally:
            os.close(descriptor)
        return False

    def _locked(self, name: bytes, key: bytes, until: float) -> int | None:
        if self._directory is None:
            return None
        descriptor = None
        try:
            self._directory.mkdir(0o700, exist_ok=True)
            descriptor = open_regular(self._directory / name.hex(), os.O_RDWR | os.O_CREAT, follow=False)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.truncate(descriptor, 0)
            write(descriptor, key)
            os.utime(descriptor, (until, until))
        except OSError as error:
            why = error.strerror or str(error)
            log.error("the other workers cannot be told of a call that is heard: {why}", why=why)
            if descriptor is not None:
                os.close(descriptor)
            return None
        return descriptor


def _name(upstream: str, identity: bytes) -> bytes:
    return digest(b"call %b %b" % (upstream.encode(), identity))

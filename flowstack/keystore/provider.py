"""The operator's own provider keys, each in a file beside the configuration."""

from __future__ import annotations

import re
import stat
from collections.abc import Mapping
from pathlib import Path

from twisted.logger import Logger

from flowstack.files import NotRegular, read_regular

log = Logger()

_MOST_BYTES = 8192
_KEY = re.compile(rb"[!-~]{1,4096}").fullmatch


class ProviderKeyError(Exception):
    """A provider key's file cannot be used; the text says why, and holds nothing of it."""


class ProviderKeys:
    """The keys of the upstreams that have one, as of the last good reading of each file.

    :param files: by the upstream's name, the file with its key and nothing else.
    :ivar keys: by the upstream's name; the same object for as long as the process lives.
    :raises ProviderKeyError: a file cannot be used.
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = dict(files)
        self.keys = {name: read_key(_where(name), path) for name, path in self._files.items()}

    def __repr__(self) -> str:
        return f"<ProviderKeys of {', '.join(self._files) or 'no upstream'}>"

    def reload(self) -> None:
        """Read each file anew. Where one cannot be used, the log says why, and its old key stays in force."""
        for name, path in self._files.items():
            try:
                self.keys[name] = read_key(_where(name), path)
            except ProviderKeyError as error:
                log.error("a provider key was not taken over, the old one stays in force: {fault}", fault=str(error))


def _where(name: str) -> str:
    return f"[upstreams.{name}] api_key_file"


def read_key(where: str, path: Path) -> bytes:
    """Read a provider's key from the file that has it and nothing else.

    :param where: whose file it is, for messages.
    :raises ProviderKeyError: it cannot be used.
    """
    where = f"{where} {path}"
    try:
        text, status = read_regular(path, _MOST_BYTES)
    except NotRegular as error:
        raise ProviderKeyError(
            f"{where}: found {error.strerror}, expected the provider's key and nothing else"
        ) from None
    except OSError as error:
        raise ProviderKeyError(
            f"{where} cannot be read: {error.strerror}; the user who runs Flowstack must be able to"
        ) from None
    if status.st_mode & 0o006:
        raise ProviderKeyError(
            f"{where}: found mode {stat.S_IMODE(status.st_mode):04o}, expected none for others; run chmod o= on it"
        )
    key = text.strip()
    if not _KEY(key):
        raise ProviderKeyError(f"{where}: expected the provider's key and nothing else, found something else")
    if key.startswith(b"fsk-"):
        raise ProviderKeyError(f"{where}: found a Flowstack key, expected the provider's own key")
    return key

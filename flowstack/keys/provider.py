"""The operator's own provider keys, each in a file beside the configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from twisted.logger import Logger

from flowstack.errors import ParseError
from flowstack.files import read_secret
from flowstack.redact import shown

log = Logger()

_MAX_BYTES = 8192
_KEY = re.compile(rb"[!-~]{1,4096}").fullmatch


class ProviderKeys:
    """The keys of the upstreams that have one, as of the last good reading of each file.

    :param files: by the upstream's name, the file with its key and nothing else.
    :ivar keys: by the upstream's name; the same object for as long as the process lives.
    :raises ParseError: a file cannot be used.
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = dict(files)
        self.keys = {name: read_key(_where(name), path) for name, path in self._files.items()}

    def __repr__(self) -> str:
        return f"<ProviderKeys of {', '.join(self._files) or 'no upstream'}>"

    def reload(self) -> None:
        """Reload each file. Where one cannot be used, the log says why, and its old key stays in force."""
        for name, path in self._files.items():
            try:
                self.keys[name] = read_key(_where(name), path)
            except ParseError as error:
                log.error("a provider key was not reloaded, the old one stays in force: {fault}", fault=str(error))


def _where(name: str) -> str:
    return f"[upstreams.{name}] api_key_file"


def read_key(where: str, path: Path) -> bytes:
    """Read a provider's key from the file that has it and nothing else.

    :param where: whose file it is, for messages.
    :raises ParseError: it cannot be used.
    """
    alone = "the provider's key and nothing else"
    try:
        key = read_secret(path, _MAX_BYTES)
        if not _KEY(key):
            raise ParseError.found(f"something else in {shown(str(path))}", alone)
        if key.startswith(b"fsk-"):
            raise ParseError.found(f"a Flowstack key in {shown(str(path))}", alone)
    except ParseError as error:
        raise ParseError(error.message, key=where) from None
    return key

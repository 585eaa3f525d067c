"""What a forward proxy asks for, read from a file of its own."""

from __future__ import annotations

import re
from base64 import b64encode
from pathlib import Path

from flowstack.errors import ParseError
from flowstack.files import read_secret
from flowstack.redact import shown

_MAX_BYTES = 8192
_CREDENTIALS = re.compile(rb"[^:\x00-\x1f\x7f]+:[^\x00-\x1f\x7f]*").fullmatch
"""RFC 7617 §2: no colon in the user's name, no control character in either."""


def proxy_authorization(path: Path) -> bytes:
    """Return what ``Proxy-Authorization`` says (RFC 7617) for the ``user:password`` in a file.

    :raises ParseError: the file cannot be used. It says nothing of what is in it.
    """
    text = read_secret(path, _MAX_BYTES)
    if not _CREDENTIALS(text):
        raise ParseError.found(f"something else in {shown(str(path))}", "user:password, and nothing else")
    return b"Basic " + b64encode(text)

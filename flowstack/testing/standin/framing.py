"""What h11 lets pass in a request head, and a strict server must not (RFC 9112 §2.2, §3.2, §5, §6).

Deliberately apart from :mod:`flowstack.http`, so that the proxy's mistakes are not made a second time here.
"""

from __future__ import annotations

import re

_TARGET = re.compile(rb"[!$-;=?-Z_a-z~%\[\]@:]+")


def fault_in(head: bytes) -> str | None:
    """What is wrong with a head, or None.

    :param head: from the request line up to and with the blank line.
    """
    lines = head.split(b"\r\n")
    if b"\n" in b"".join(lines) or b"\r" in b"".join(lines):
        return "bare CR or LF in the head (RFC 9112 §2.2)"
    if b"\0" in head:
        return "NUL in the head (RFC 9110 §5.5)"
    request_line, fields = lines[0], [line for line in lines[1:] if line]
    parts = request_line.split(b" ")
    if len(parts) != 3 or not _TARGET.fullmatch(parts[1]):
        return "request line is not method, target and version with one space between (RFC 9112 §3)"
    if any(line[:1] in b" \t" for line in fields):
        return "obsolete line folding (RFC 9112 §5.2)"
    values: dict[bytes, list[bytes]] = {}
    for line in fields:
        name, _, value = line.partition(b":")
        values.setdefault(name.lower(), []).append(value.strip(b" \t"))
    lengths, codings = values.get(b"content-length", []), values.get(b"transfer-encoding", [])
    if len(values.get(b"host", [])) != 1 or not values[b"host"][0]:
        return "no Host, an empty one, or more than one (RFC 9112 §3.2)"
    if len(lengths) > 1 or any(not (v.isdigit() and (v == b"0" or v[:1] != b"0")) for v in lengths):
        return "Content-Length is repeated or not a plain decimal number (RFC 9112 §6.3)"
    if lengths and codings:
        return "Content-Length and Transfer-Encoding together (RFC 9112 §6.1)"
    if codings and [v.lower() for v in codings] != [b"chunked"]:
        return "Transfer-Encoding is not one chunked (RFC 9112 §6.1)"
    if codings and parts[2] != b"HTTP/1.1":
        return "Transfer-Encoding in HTTP/1.0 (RFC 9112 §6.1)"
    return None

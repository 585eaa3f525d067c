"""One request on one connection: read, answered, delivered with the faults that were asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from http import HTTPStatus

import h11
from attrs import evolve

from flowstack.testing.standin import handshake, replies
from flowstack.testing.standin.app import App
from flowstack.testing.standin.coding import encode
from flowstack.testing.standin.connection import Connection, Gone
from flowstack.testing.standin.faults import BadDirective, Directives, parse
from flowstack.testing.standin.framing import fault_in
from flowstack.testing.standin.journal import PRIVATE, Seen
from flowstack.testing.standin.values import Refused, Reply, Request, Said, Talk, json_reply, slices
from flowstack.testing.standin.websocket import Socket

MAX_BODY = 64 * 1024 * 1024
"""The most bytes of a request's body that are kept; a longer one is read to its end, and refused with 413."""

GARBAGE = b"\x00\xffthis is no HTTP\x00\r\n\r\n"


async def exchange(app: App, connection: Connection) -> bool:
    """Serve the connection's next request.

    :return: whether the connection can carry another one.
    :raises Gone: where the peer closed the connection; recorded, if a request was under way.
    """
    journal = app.journal
    seen: Seen | None = None
    try:
        event, head = await _head(connection)
        if not isinstance(event, h11.Request):
            return False
        headers = tuple(event.headers.raw_items())
        version = event.http_version.decode("ascii")
        request = Request(event.method.decode("ascii"), event.target.decode("latin-1"), headers, version=version)
        seen = Seen(
            number=journal.number(),
            connection=connection.number,
            method=request.method,
            target=request.target,
            http_version=version,
            headers=[(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers],
            head=head.decode("latin-1"),
            started_at=connection.now(),
        )
        if request.target.startswith(PRIVATE):
            journal.private(connection.number)
        else:
            journal.begin(seen, request.header("x-client-tag"))
        fault = fault_in(head)
        if fault is not None:
            raise h11.RemoteProtocolError(fault)
        return await _answer(app, connection, request, seen)
    except h11.RemoteProtocolError as error:
        journal.framing_fault(seen, str(error))
        await _refuse(app, connection, str(error))
        return False
    except Gone:
        if seen is not None and seen.end == "open" and not seen.target.startswith(PRIVATE):
            journal.client_gone(seen)
        raise


async def _head(connection: Connection) -> tuple[object, bytes]:
    """The next request, and the bytes of its head as they came."""
    while True:
        held = connection.h11.trailing_data[0]
        event = connection.h11.next_event()
        if event is not h11.NEED_DATA:
            return event, held[: len(held) - len(connection.h11.trailing_data[0])]
        await connection.more()


async def _answer(app: App, connection: Connection, request: Request, seen: Seen) -> bool:
    text = request.header("stand-in") or ""
    bad: BadDirective | None = None
    try:
        directives = app.due(request.header("x-client-tag") or "", text, parse(text))
    except BadDirective as fault:
        directives, bad = Directives(), fault
    if not directives.early or handshake.asked_for(request):
        if directives.continue_100 or connection.h11.they_are_waiting_for_100_continue:
            await connection.send(_sent(connection, h11.InformationalResponse(status_code=100, headers=[])))
        body = await _body(connection, directives, seen)
        if body is None:
            too_large = f"The body has {seen.body_bytes} bytes; the most is {MAX_BODY}. The directive `sink` takes any."
            reply = replies.refusal(Refused(413, too_large))
        elif bad is not None:
            reply = replies.refusal(Refused(400, str(bad), code="unknown_directive"))
        elif directives.sink:
            reply = json_reply({"bytes": seen.body_bytes, "sha256": seen.body_sha256})
        else:
            request = evolve(request, body=body)
            reply, directives = app.answer(request, directives)
    else:
        reply, directives = app.answer(request, directives)
    try:
        if reply.talk is None:
            reply = encode(reply, request.header("accept-encoding"), directives.coding)
    except Refused as refused:
        reply = replies.refusal(refused)
    return await _deliver(app, connection, request, reply, directives, seen)


async def _body(connection: Connection, directives: Directives, seen: Seen) -> bytes | None:
    """Read the body to its end; None where it was too long to be kept."""
    digest = hashlib.sha256()
    kept: bytearray | None = bytearray()
    step = max(1, min(65536, directives.slow_read // 10))
    if directives.slow_read:
        connection.read_little(step)
    while True:
        event = connection.h11.next_event()
        if event is h11.NEED_DATA:
            await connection.more()
        elif isinstance(event, h11.Data):
            digest.update(event.data)
            seen.body_bytes += len(event.data)
            if directives.sink:
                pass
            elif kept is not None and len(kept) + len(event.data) <= MAX_BODY:
                kept += event.data
            else:
                kept = None
            if directives.slow_read:
                connection.hold()
                # What came together with the head is free: a long pause here would hide that the peer has left.
                await connection.pause(min(step, len(event.data)) / directives.slow_read)
        elif isinstance(event, h11.EndOfMessage):
            seen.body_sha256 = digest.hexdigest()
            seen.body_complete = True
            seen.trailers = [(n.decode("latin-1"), v.decode("latin-1")) for n, v in event.headers.raw_items()]
            return None if kept is None else bytes(kept)
        else:
            raise Gone


def _sent(connection: Connection, *events: h11.Event) -> bytes:
    """The events' bytes, in one."""
    return b"".join(connection.h11.send(event) or b"" for event in events)


async def _refuse(app: App, connection: Connection, fault: str) -> None:
    """400 for what was not HTTP, and the end of the connection."""
    if connection.h11.our_state in (h11.IDLE, h11.SEND_RESPONSE):
        reply = replies.refusal(Refused(400, f"Bad HTTP: {fault}", code="bad_http"))
        head = replies.provider_headers(reply, app.journal.number(), connection.now(), close=True)
        answer = h11.Response(status_code=400, headers=head, reason=_reason(400))
        await connection.send(_sent(connection, answer, *(h11.Data(data=piece) for piece in reply.pieces)))
    await connection.linger()


async def _deliver(
    app: App, connection: Connection, request: Request, reply: Reply, directives: Directives, seen: Seen
) -> bool:
    """Send the reply as the directives want it; the return value is that of :func:`exchange`."""
    await connection.pause(directives.delay)
    if directives.drop or directives.garbage:
        seen.end = "drop" if directives.drop else "garbage"
        await connection.send(b"" if directives.drop else GARBAGE)
        return False
    if directives.hints_103:
        link = (b"Link", b"</stand-in>; rel=preload")
        await connection.send(_sent(connection, h11.InformationalResponse(status_code=103, headers=[link])))
    if reply.talk is not None:
        return await _switch(app, connection, reply, reply.talk, directives, seen)
    if directives.chunked or directives.ends_by_close:
        reply = evolve(reply, length=None)
    closing = directives.early or directives.ends_by_close
    headers = replies.provider_headers(reply, seen.number, connection.now(), close=closing)
    seen.status = reply.status
    response = h11.Response(status_code=reply.status, headers=headers, reason=_reason(reply.status))
    bodiless = request.method == "HEAD" or reply.status in (204, 304)
    by_hand = directives.ends_by_close and not bodiless
    await connection.send(_raw(response) if by_hand else _sent(connection, response))
    if directives.hang:
        await connection.forever()
    await connection.pause(directives.first)
    if not bodiless and not await _send_body(connection, reply, directives, seen, by_hand):
        return False
    if bodiless:
        await connection.send(_sent(connection, h11.EndOfMessage()))
    app.journal.complete(seen, reply.endpoint, reply.usage)
    app.organization.served(request, reply)
    if directives.early:
        await connection.linger()
    return connection.h11.states == {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE}


async def _switch(
    app: App, connection: Connection, reply: Reply, talk: Talk, directives: Directives, seen: Seen
) -> bool:
    """Go over to WebSocket; it has the connection to its end."""

    def said(event: Said) -> None:
        if event.usage is not None:
            app.journal.count(seen, event.endpoint, event.usage)
            if event.asked is not None:
                app.organization.served(event.asked, Reply(endpoint=event.endpoint, usage=event.usage))

    seen.status = reply.status
    headers = replies.provider_headers(reply, seen.number, connection.now())
    await connection.send(
        _sent(connection, h11.InformationalResponse(status_code=101, headers=headers, reason=_reason(101)))
    )
    await Socket(connection, app.journal, seen, directives, talk, said).run()
    return False


async def _send_body(connection: Connection, reply: Reply, directives: Directives, seen: Seen, by_hand: bool) -> bool:
    """Send the pieces; the last goes out together with the end of the framing.

    :param by_hand: whether the pieces go out bare, without h11's framing.
    :return: whether the body was sent to its end, and not cut or closed before.
    """
    limits = [n for n in (directives.cut, directives.close) if n is not None]
    left = min(limits) if limits else None
    pieces = _pieces(reply, directives)
    piece = next(pieces, b"")
    while True:
        if left is not None:
            piece = piece[:left]
            left -= len(piece)
        following = next(pieces, None)
        last = following is None and left is None and not by_hand
        events = [h11.Data(data=piece), *([h11.EndOfMessage()] if last else [])]
        await connection.send(piece if by_hand else _sent(connection, *events))
        seen.bytes_out += len(piece)
        if left is not None and (left == 0 or following is None):
            cut = directives.cut is not None and directives.cut == min(limits)
            seen.end = "cut" if cut else "close"
            connection.abort() if cut else connection.close()
            return False
        if following is None:
            return True
        piece = following
        await connection.pause(directives.pace)


def _pieces(reply: Reply, directives: Directives) -> Iterator[bytes]:
    for piece in reply.pieces:
        if directives.drip:
            yield from slices(piece, directives.drip)
        elif piece:
            yield piece


def _reason(status: int) -> bytes:
    try:
        return HTTPStatus(status).phrase.encode("ascii")
    except ValueError:
        return b""


def _raw(response: h11.Response) -> bytes:
    """A head that h11 would not write: one whose body only the connection's end ends, to an HTTP/1.1 client."""
    lines = [b"HTTP/1.1 %d %s" % (response.status_code, response.reason)]
    lines += [name + b": " + value for name, value in response.headers.raw_items()]
    return b"\r\n".join(lines) + b"\r\n\r\n"

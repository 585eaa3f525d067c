"""Every timeout of the server channel: named, never early, at most two ticks late."""

from __future__ import annotations

import pytest

from tests.harness import HIGH_WATER, Handle, Listener, Stage, Transport, reply

GET = b"GET /v1/a HTTP/1.1\r\nHost: a\r\n\r\n"


def start() -> tuple[Listener, Stage, Transport]:
    stage = Stage()
    site = Listener(stage)
    site.turns.advance(0.6 * site.turns.ticker.interval)  # between two ticks, as in life
    return site, stage, site.connect()


def test_who_sends_nothing_is_closed_after_request_head() -> None:
    site, _, client = start()
    site.turns.fires(15, lambda: client.closed)
    assert (client.calls, client.take()) == (["loseConnection"], b"")


def test_a_handshake_before_it_counts_as_part_of_request_head() -> None:
    site = Listener(Stage())
    site.turns.advance(0.6 * site.turns.ticker.interval)
    client = site.connect(secure=True, waited=11.0)
    site.turns.fires(4, lambda: client.closed)


def test_a_head_that_drips_is_400_after_request_head_from_its_first_byte() -> None:
    site, stage, client = start()
    site.turns.advance(10)
    client.send(b"G")
    for byte in b"ET / HTTP/1.1":
        site.turns.advance(1)
        client.send(bytes([byte]))
    assert client.take() == b""
    site.turns.fires(2, lambda: client.got)
    assert b"request head did not come within 15 seconds" in client.take()
    assert stage.requests == []


def test_an_idle_connection_is_closed_after_keepalive() -> None:
    site, stage, client = start()
    client.send(GET)
    reply(stage.requests[0])
    site.turns.fires(75, lambda: client.closed)
    assert client.calls == ["loseConnection"]


def test_a_second_head_has_its_own_time() -> None:
    site, stage, client = start()
    client.send(GET)
    reply(stage.requests[0])
    client.take()
    site.turns.advance(70)
    client.send(b"GET")
    site.turns.fires(15, lambda: client.got)


def test_nothing_runs_while_an_answer_is_awaited() -> None:
    site, stage, client = start()
    client.send(GET)
    site.turns.advance(5000)
    reply(stage.requests[0])
    assert client.take().startswith(b"HTTP/1.1 200 ")


def test_a_head_that_begins_during_an_answer_counts_from_its_end() -> None:
    site, stage, client = start()
    client.send(GET + b"GET /")
    site.turns.advance(500)
    reply(stage.requests[0])
    client.take()
    site.turns.fires(15, lambda: client.got)


def test_an_upload_that_stalls_is_400_after_request_idle() -> None:
    site, stage, client = start()
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n")
    for _ in range(5):
        site.turns.advance(50)
        client.send(b"x")
    assert client.take() == b""
    site.turns.fires(60, lambda: client.got)
    assert client.take().startswith(b"HTTP/1.1 400 ")
    assert stage.requests[0].finished


def test_an_upload_that_flowstack_itself_does_not_read_does_not_stall() -> None:
    site, _, client = start()
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 100_000)
    assert not client.reading
    site.turns.advance(500)
    assert (client.take(), client.closed) == (b"", False)


def test_an_upload_that_stalls_while_its_answer_is_under_way_is_cut() -> None:
    site, stage, client = start()
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n")
    stage.requests[0].write_head(200, b"OK", b"", None)
    stage.requests[0].write(b"x")
    site.turns.fires(60, lambda: client.peer_saw == "reset")
    assert stage.ends == ["timeout"]


def test_a_client_that_takes_nothing_is_cut_after_client_idle() -> None:
    site, stage, client = start()
    client.peer_reads = False
    client.send(GET)
    stage.requests[0].write_head(200, b"OK", b"", None)
    stage.requests[0].write(b"x" * HIGH_WATER)
    site.turns.fires(60, lambda: client.peer_saw == "reset")
    assert stage.ends == ["timeout"]


@pytest.mark.parametrize("ended", [False, True])
def test_a_client_that_takes_a_little_is_waited_for(ended: bool) -> None:
    """However slowly: the kernel knows of bytes that were taken before the buffer's mark is reached."""
    site, stage, client = start()
    client.handle = Handle()
    client.peer_reads = False
    client.send(GET.replace(b"Host", b"Connection: close\r\nHost"))
    stage.requests[0].write_head(200, b"OK", b"", None)
    stage.requests[0].write(b"x" * HIGH_WATER)
    if ended:
        stage.requests[0].end()
    for _ in range(10):
        client.handle.acknowledged += 1
        site.turns.advance(55)
        assert not client.closed
    site.turns.advance(130)
    assert client.peer_saw == "reset"
    assert stage.ends == ([] if ended else ["timeout"])


def behind() -> tuple[Listener, Stage, Transport]:
    """A client that has not read a part of its answer, which was then broken off."""
    site, stage, client = start()
    client.peer_reads = False
    client.send(GET)
    stage.requests[0].write_head(200, b"OK", b"", None)
    stage.requests[0].write(b"x" * 1000)
    stage.requests[0].break_off()
    stage.requests[0].write(b"too late")
    return site, stage, client


def test_who_is_behind_gets_all_of_an_answer_that_was_broken_off_and_then_the_cut() -> None:
    site, stage, client = behind()
    site.turns.advance(20)
    assert not client.closed
    client.send(GET)  # nobody hears it
    client.read()
    site.turns.fires(0, lambda: client.peer_saw)
    assert client.peer_saw == "reset"
    assert client.take().endswith(b"\r\n\r\n3e8\r\n" + b"x" * 1000 + b"\r\n")
    assert (len(stage.requests), stage.ends, site.site.connections) == (1, [], set())


def test_who_is_behind_and_takes_nothing_is_cut_after_client_idle() -> None:
    site, _, client = behind()
    site.turns.fires(60, lambda: client.peer_saw == "reset")
    assert client.take() == b""


def test_who_is_behind_and_takes_a_little_is_waited_for() -> None:
    site, _, client = behind()
    for _ in range(10):
        site.turns.advance(55)
        client.read(10)
        assert not client.closed
    site.turns.advance(site.turns.ticker.interval)  # in which it is seen
    site.turns.fires(60, lambda: client.peer_saw == "reset")


def test_who_is_behind_and_leaves_is_forgotten() -> None:
    site, stage, client = behind()
    client.hang_up()
    site.turns.advance(200)
    assert (stage.ends, site.site.connections) == ([], set())


def test_a_drain_does_not_make_an_answer_that_was_broken_off_look_finished() -> None:
    site, _, client = behind()
    site.site.drain()
    site.site.close()
    client.read()
    site.turns.fires(0, lambda: client.peer_saw)
    assert client.peer_saw == "reset"


def test_the_end_of_a_drain_lets_who_is_behind_have_what_was_written() -> None:
    site, stage, client = start()
    client.peer_reads = False
    client.send(GET)
    stage.requests[0].write_head(200, b"OK", b"", None)
    stage.requests[0].write(b"x" * 1000)
    site.site.close()
    assert (stage.ends, client.closed) == (["drain"], False)
    client.read()
    site.turns.fires(0, lambda: client.peer_saw)
    assert client.peer_saw == "reset"
    assert client.take().endswith(b"x" * 1000 + b"\r\n")


def test_the_time_of_a_full_output_ends_with_it() -> None:
    site, stage, client = start()
    client.peer_reads = False
    client.send(GET)
    stage.requests[0].write_head(200, b"OK", b"", None)
    stage.requests[0].write(b"x" * HIGH_WATER)
    site.turns.advance(55)
    client.peer_reads = True
    client.read()
    site.turns.advance(500)
    assert (stage.ends, client.closed) == ([], False)


def test_a_last_answer_that_nobody_takes_is_cut_after_client_idle() -> None:
    site, stage, client = start()
    client.peer_reads = False
    client.send(GET.replace(b"Host", b"Connection: close\r\nHost"))
    reply(stage.requests[0])
    assert client.calls == ["loseConnection"]
    site.turns.fires(60, lambda: client.peer_saw == "reset")

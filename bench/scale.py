"""How much is run: everything, the quick rows, or next to nothing."""

from __future__ import annotations

from attrs import frozen


@frozen(slots=True)
class Scale:
    """The size of a run.

    :ivar rounds: how often everything is started anew and run.
    :ivar passes: how often the subjects take turns at a case within a round.
    :ivar http_seconds: of one run of wrk, whole.
    :ivar http_settle: the part of it, at its begin, that is not counted, in seconds.
    :ivar connections: (upstream, number of connections) of the request measure; those of one upstream together.
    :ivar stream_seconds: counted time of one run of event streams.
    :ivar streams: numbers of event streams.
    :ivar stream_share: the part of a stream's chunks due in the counted time that must have come, or the figure is not
        one of that load.
    :ivar idle_streams: streams that stand still.
    :ivar bulk_bytes: size of the upload and the download.
    :ivar leave_trials: clients that leave, in each state.
    :ivar keys: numbers of keys in a keystore.
    :ivar ledger_rows: in the journal that is indexed.
    """

    rounds: int
    passes: int
    http_seconds: int
    http_settle: float
    connections: tuple[tuple[str, int], ...]
    stream_seconds: float
    streams: tuple[int, ...]
    stream_share: float
    idle_streams: int
    bulk_bytes: int
    leave_trials: int
    keys: tuple[int, ...]
    ledger_rows: int


FULL = Scale(
    rounds=3,
    passes=1,
    http_seconds=5,
    http_settle=1.0,
    connections=(("fast", 32), ("plain", 1), ("plain", 32), ("plain", 256), ("tls", 32)),
    stream_seconds=4.0,
    streams=(100, 1000),
    stream_share=0.95,
    idle_streams=5000,
    bulk_bytes=2**30,
    leave_trials=200,
    keys=(1000, 100_000, 1_000_000),
    ledger_rows=1_000_000,
)

QUICK = Scale(
    rounds=1,
    passes=1,
    http_seconds=2,
    http_settle=0.6,
    connections=(("fast", 32), ("plain", 32), ("tls", 32)),
    stream_seconds=2.0,
    streams=(100,),
    stream_share=0.95,
    idle_streams=1000,
    bulk_bytes=2**28,
    leave_trials=30,
    keys=(1000, 100_000),
    ledger_rows=100_000,
)

TINY = Scale(
    rounds=1,
    passes=1,
    http_seconds=1,
    http_settle=0.3,
    connections=(("fast", 4), ("plain", 4)),
    stream_seconds=1.0,
    streams=(10,),
    stream_share=0.0,  # nobody reads the figures: it shows that the bench works, however busy the machine is
    idle_streams=50,
    bulk_bytes=2**24,
    leave_trials=3,
    keys=(1000,),
    ledger_rows=3000,
)

SCALES = {"full": FULL, "quick": QUICK, "tiny": TINY}

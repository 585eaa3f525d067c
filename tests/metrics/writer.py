"""A worker, as far as counting goes: ``python -m tests.metrics.writer DESCRIPTOR VARIETY`` counts until it is killed.

Says ``counting`` once it is at it. ``VARIETY`` bounds the names that it makes up. With a further argument it counts so
many requests, and ends.
"""

from __future__ import annotations

import sys

from flowstack.metrics.families import IN_FLIGHT
from flowstack.metrics.recorder import Recorder
from flowstack.metrics.segment import Segment
from tests.metrics.rows import row


def main(arguments: list[str]) -> None:
    recorder = Recorder(Segment.attach(int(arguments[0])))
    variety = int(arguments[1])
    most = int(arguments[2]) if len(arguments) > 2 else None
    recorder.watch(IN_FLIGHT, lambda: 7)
    recorder.publish()
    print("counting", flush=True)
    count = 0
    while most is None or count < most:
        # Each few requests a label set that is new, so that a kill also meets the directory being written.
        name = f"model-{count // 50 % variety}"
        recorder.record(row(model_requested=name, model=name), f"operation-{count // 20 % variety}")
        recorder.unauthenticated(f"code-{count % 20}")
        count += 1


if __name__ == "__main__":
    main(sys.argv[1:])

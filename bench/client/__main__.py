"""Runs one load client; see :mod:`bench.client`."""

from __future__ import annotations

import gc
import json
import sys

from bench.client import bulk, idle, keys, leave, ledger, sse
from bench.procs import BenchError

KINDS = {
    "sse": sse.run,
    "idle": idle.run,
    "upload": bulk.upload,
    "download": bulk.download,
    "leave": leave.run,
    "keys": keys.run,
    "ledger": ledger.run,
}


def main() -> None:
    """Run the client that the command line names; a failure becomes ``{"error": …}``."""
    order = json.loads(sys.argv[2])
    gc.disable()
    try:
        print(json.dumps(KINDS[sys.argv[1]](order)))
    except (BenchError, OSError) as fault:
        print(json.dumps({"error": f"{fault}" or type(fault).__name__}))


if __name__ == "__main__":
    main()

"""The proxies under test, by name."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from bench.procs import ROOT, BenchError
from bench.subjects.base import Subject
from bench.subjects.envoy import Envoy
from bench.subjects.flowstack import LIMITS, Compiled, Flowstack
from bench.subjects.gateways import Litellm, Portkey
from bench.subjects.haproxy import Haproxy
from bench.subjects.nginx import Nginx

#: The subjects that all others are held against.
REFERENCES = ("nginx", "envoy")
#: The checkout that ``BEFORE`` names in the environment, so that two states are measured in turn.
BEFORE = Path(os.environ.get("BEFORE") or ROOT)
SUBJECTS: dict[str, Subject] = {
    subject.name: subject
    for subject in (
        Nginx(),
        Envoy(),
        Flowstack("flowstack"),
        Flowstack("flowstack-limits", attributes=LIMITS),
        Compiled("flowstack-compiled"),
        Compiled("flowstack-compiled-limits", attributes=LIMITS),
        Flowstack("flowstack-epoll", "epoll"),
        Flowstack("flowstack-before", root=BEFORE),
        Flowstack("flowstack-before-limits", attributes=LIMITS, root=BEFORE),
        Haproxy(),
        Litellm(),
        Portkey(),
    )
}
#: Those with ``-limits`` have every limit set on their key.
USUAL = ("nginx", "envoy", "flowstack", "flowstack-limits", "flowstack-compiled", "flowstack-compiled-limits")
QUICK = ("nginx", "flowstack")
PEERS = ("haproxy", "litellm", "portkey")


def choose(names: Iterable[str]) -> list[Subject]:
    """The subjects of those names, each once.

    :raises BenchError: for a name that is none.
    """
    chosen = list(dict.fromkeys(names))
    unknown = [name for name in chosen if name not in SUBJECTS]
    if unknown or not chosen:
        raise BenchError(f"no such subject: {', '.join(unknown) or '(none named)'}; there are {', '.join(SUBJECTS)}")
    return [SUBJECTS[name] for name in chosen]

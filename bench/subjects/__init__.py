"""The proxies under test, by name."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from bench.procs import ROOT, BenchError
from bench.subjects.base import Subject
from bench.subjects.envoy import Envoy
from bench.subjects.flowstack import LIMITS, Flowstack
from bench.subjects.gateways import Litellm, Portkey
from bench.subjects.haproxy import Haproxy
from bench.subjects.nginx import Nginx

#: The subject that all others are held against.
REFERENCE = "nginx"
SUBJECTS: dict[str, Subject] = {
    subject.name: subject
    for subject in (
        Nginx(),
        Envoy(),
        Flowstack("flowstack"),
        Flowstack("flowstack-epoll", "epoll"),
        Flowstack("flowstack-limits", attributes=LIMITS),
        Flowstack("flowstack-before", root=Path(os.environ.get("BEFORE") or ROOT)),
        Haproxy(),
        Litellm(),
        Portkey(),
    )
}
#: ``flowstack-limits`` has every limit set on its key; ``flowstack-before`` is the checkout that ``BEFORE`` names in
#: the environment, so that two states are measured in turn.
USUAL = ("nginx", "envoy", "flowstack", "flowstack-epoll")
QUICK = ("nginx", "flowstack")


def choose(names: Iterable[str]) -> list[Subject]:
    """The subjects of those names, each once.

    :raises BenchError: for a name that is none.
    """
    chosen = list(dict.fromkeys(names))
    unknown = [name for name in chosen if name not in SUBJECTS]
    if unknown or not chosen:
        raise BenchError(f"no such subject: {', '.join(unknown) or '(none named)'}; there are {', '.join(SUBJECTS)}")
    return [SUBJECTS[name] for name in chosen]

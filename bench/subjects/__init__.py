"""The proxies under test, by name."""

from __future__ import annotations

from collections.abc import Iterable

from bench.procs import BenchError
from bench.subjects.base import Subject
from bench.subjects.envoy import Envoy
from bench.subjects.flowstack import Flowstack
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
        Haproxy(),
        Litellm(),
        Portkey(),
    )
}
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

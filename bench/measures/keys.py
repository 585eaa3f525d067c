"""Many keys."""

from __future__ import annotations

from bench.lab import Lab, Running
from bench.measures.base import Case, Column, Plain
from bench.scale import Scale
from bench.subjects.base import Subject


class Keys(Plain):
    """A keystore file of many keys: what it costs to hold, to look up in, and to reload while the loop goes on."""

    name = "keys"
    title = "Keys: memory, look-ups, and a reload in a process with nothing else to do"
    columns: tuple[Column, ...] = (
        Column("stall_ms", "longest stop ms", 1),
        Column("stall_cpu_ms", "of it CPU ms", 1),
        Column("reload_ms", "reload ms", 0),
        Column("reload_cpu_ms", "of it CPU ms", 0),
        Column("rss_mib", "RSS MiB", 1),
        Column("peak_mib", "most RSS MiB", 1),
        Column("again_us", "used key µs", 2),
        Column("first_us", "new key µs", 1),
        Column("stranger_us", "stranger µs", 1),
        Column("gc_ms", "full GC ms", 1),
    )

    def cases(self, scale: Scale) -> list[Case]:
        """Numbers of keys."""
        return [Case(f"{count:,} keys", count, once=True) for count in scale.keys]

    def suits(self, subject: Subject, case: Case) -> bool:
        """Flowstack: the figures are of its keystore alone, with no proxy in front of it."""
        return subject.name == "flowstack"

    def run(self, lab: Lab, subject: Running, case: Case, scale: Scale) -> dict[str, float]:
        """See :mod:`bench.client.keys`."""
        return lab.client("keys", patience=600.0, keys=case.size)

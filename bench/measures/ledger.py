"""The ledger's index."""

from __future__ import annotations

from bench.lab import Lab, Running
from bench.measures.base import Case, Column, Plain
from bench.scale import Scale
from bench.subjects.base import Subject


class Ledger(Plain):
    """A month's journal: how fast it is taken over into the index, and how long each report then takes."""

    name = "ledger"
    title = "Ledger: a journal taken over into the index by one process, then reports over all of it"
    columns: tuple[Column, ...] = (
        Column("rows_s", "rows/s in", 0),
        Column("us_row", "CPU µs/row", 1),
        Column("index_mib", "index MiB", 0),
        Column("slowest_ms", "slowest report ms", 0),
        Column("key_ms", "by key ms", 1),
        Column("day_model_ms", "day, model ms", 1),
        Column("hour_ms", "hour ms", 1),
        Column("team_ms", "attribute ms", 1),
        Column("team_model_ms", "attribute, model ms", 1),
        Column("week_key_ms", "7 days by key ms", 1),
        Column("day_hour_key_ms", "24 h by hour, key ms", 1),
    )

    def cases(self, scale: Scale) -> list[Case]:
        """A number of rows."""
        return [Case(f"{scale.ledger_rows:,} rows", scale.ledger_rows, once=True)]

    def suits(self, subject: Subject, case: Case) -> bool:
        """Flowstack: the figures are of its index alone, with no proxy in front of it."""
        return subject.name == "flowstack"

    def run(self, lab: Lab, subject: Running, case: Case, scale: Scale) -> dict[str, float]:
        """See :mod:`bench.client.ledger`."""
        return lab.client("ledger", patience=900.0, rows=case.size, directory=str(lab.directory))

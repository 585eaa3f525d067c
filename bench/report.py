"""Tables: for a person at a terminal with colour and lines, for a file in reStructuredText."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.lab import DIRECT
from bench.measures import MEASURES, Column
from bench.samples import Figure, Row, find
from bench.subjects import SUBJECTS
from bench.targets import Verdict

NOTE = (
    "Medians over the runs, in brackets the ratios to nginx and to Envoy in the same round and turn (medians of the "
    "ratios). CPU is user and system time of the subject's processes on the request's way; with what its index takes "
    "for the row, to its end, it is all CPU. A dash: not measured, or not to be had (see the faults)."
)


#: Of the table that says it in short: heading, measure, begin of the case's label, figure.
SHORT = (
    ("request", "requests", "saturated, 32", "cpu_us"),
    ("with its row", "requests", "saturated, 32", "all_us"),
    ("TLS upstream", "requests", "tls upstream, 32", "cpu_us"),
    ("SSE chunk", "sse", "100 streams", "cpu_us"),
    ("first chunk ms", "sse", "100 streams", "first_p50_ms"),
    ("KiB a stream", "idle", "plain", "pss_kib"),
)

Grid = tuple[str, list[str], list[list[str]]]


def in_brief(rows: Sequence[Row]) -> list[Grid]:
    """Title, headings and cells of the table with one line a subject; none where hardly anything was measured."""
    found = {
        (subject, heading): _cell(row, next(one for one in MEASURES[measure].columns if one.key == key))
        for heading, measure, case, key in SHORT
        for subject in SUBJECTS
        if (row := find(rows, measure, case, subject)) is not None
    }
    headings = [heading for heading, *_ in SHORT if any(key[1] == heading for key in found)]
    named = [subject for subject in SUBJECTS if any(key[0] == subject for key in found)]
    if len(headings) < 2:
        return []
    cells = [[subject, *(found.get((subject, heading), "—") for heading in headings)] for subject in named]
    return [("In short: CPU µs where no unit is named; requests on 32 connections, saturated", ["", *headings], cells)]


def tables(rows: Sequence[Row]) -> list[Grid]:
    """Title, headings and cells: all of it in short, and then for each measure that has rows."""
    made = in_brief(rows)
    order = [DIRECT, *SUBJECTS]
    for name in dict.fromkeys(row.measure for row in rows):
        measure = MEASURES[name]
        cases = list(dict.fromkeys(row.case for row in rows if row.measure == name))
        mine = sorted(
            (row for row in rows if row.measure == name),
            key=lambda row: (cases.index(row.case), order.index(row.subject)),
        )
        columns = [column for column in measure.columns if any(column.key in row.figures for row in mine)]
        cells = [[row.case, row.subject, *(_cell(row, column) for column in columns)] for row in mine]
        made.append((measure.title, ["", "", *(column.heading for column in columns)], cells))
    return made


def _cell(row: Row, column: Column) -> str:
    figure: Figure | None = row.figures.get(column.key)
    if figure is None:
        return "—"
    text = f"{figure.median:,.{column.digits}f}"
    if column.ratio and figure.ratios and row.subject != DIRECT:
        text += f" ({', '.join(f'{ratio:.2f}' for ratio in figure.ratios.values())})"
    return text


def faults(rows: Iterable[Row]) -> list[str]:
    """One line for each thing that went wrong, with all that it befell."""
    befell: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for fault in row.faults:
            befell.setdefault((row.subject, fault), []).append(f"{row.measure} ({row.case})")
    return [f"{subject}: {in_short(fault)}: {', '.join(whom)}" for (subject, fault), whom in befell.items()]


def in_short(fault: str) -> str:
    """The first and the last line of a fault: what happened, and what the process said last."""
    lines = fault.splitlines()
    return lines[0] if len(lines) == 1 else f"{lines[0]} {lines[-1].strip()}"


def _met(verdict: Verdict) -> str:
    return {True: "met", False: "NOT met", None: "—"}[verdict.met]


def show(console: Console, rows: Sequence[Row], verdicts: Sequence[Verdict]) -> None:
    """Print all of it to a person."""
    for title, headings, cells in tables(rows):
        _show_table(console, title, headings, cells)
    if verdicts:
        _show_table(
            console,
            "To reach",
            ["target", "measured", ""],
            [[verdict.target, verdict.measured, _met(verdict)] for verdict in verdicts],
        )
    for fault in faults(rows):
        console.print(f"no figure: {fault}", markup=False, soft_wrap=True)
    console.print(NOTE, markup=False, soft_wrap=not console.is_terminal)


def _show_table(console: Console, title: str, headings: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    if not console.is_terminal:
        console.print("\n".join(["", title, *_plain(headings, cells)]), markup=False, soft_wrap=True)
        return
    table = Table(title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("", "target", "measured") else "right")
    for at, row in enumerate(cells):
        repeated = at > 0 and len(headings) > 3 and cells[at - 1][0] == row[0]
        table.add_row("" if repeated else row[0], *row[1:])
    console.print(table)


def _plain(headings: Sequence[str], cells: Sequence[Sequence[str]], rule: str = "") -> list[str]:
    widths = [max(len(row[at]) for row in (headings, *cells)) for at in range(len(headings))]

    def line(row: Sequence[str]) -> str:
        pairs = enumerate(zip(row, widths, strict=True))
        words = (word.ljust(width) if at < 2 else word.rjust(width) for at, (word, width) in pairs)
        return "  ".join(words).rstrip()

    rules = ["  ".join(rule * width for width in widths)] if rule else []
    return [*rules, line(headings), *rules, *(line(row) for row in cells), *rules]


def as_rst(document: dict[str, Any], rows: Sequence[Row], verdicts: Sequence[Verdict]) -> str:
    """The whole result as a page."""
    title = f"Bench of {document['started'][:10]}"
    machine = document["machine"]
    lines = [
        title,
        "=" * len(title),
        "",
        f":machine: {machine['processor']}, {machine['cores']} cores{' (virtual)' if machine['virtual'] else ''}, "
        f"{machine['memory_gib']} GiB, {machine['system']}, Linux {machine['kernel']}",
        f":pinned: subject on {_cores(machine, 'subject')}, load and upstream on {_cores(machine, 'load')}, "
        f"two workers on {_cores(machine, 'pair')}",
        f":scale: {document['scale_name']}, rounds: {document['scale']['rounds']}, "
        f"turns in each: {document['scale']['passes']}",
        f":commit: {document['commit']}",
        f":others: used {', '.join(map(str, document['others_busy_cores']))} cores at the begin of the rounds",
        *(f":{name}: {version}" for name, version in document["versions"].items()),
        "",
        NOTE,
    ]
    for heading, headings, cells in tables(rows):
        blanks = headings.count("")
        named = [*("case", "subject")[2 - blanks :], *headings[blanks:]]
        lines += ["", heading, "-" * len(heading), "", *_plain(named, cells, "=")]
    if verdicts:
        cells = [[verdict.target, verdict.measured, _met(verdict)] for verdict in verdicts]
        lines += ["", "To reach", "--------", "", *_plain(["target", "measured", "met"], cells, "=")]
    if notes := faults(rows):
        lines += ["", "Faults", "------", ""]
        lines += [f"- ``{' '.join(note.split()).replace('`', chr(39))}``" for note in notes]
    return "\n".join(lines) + "\n"


def _cores(machine: dict[str, Any], part: str) -> str:
    return "core " + ", ".join(map(str, machine["pinned"][part]))

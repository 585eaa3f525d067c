"""The table that ``flowstack usage`` prints for a person.

Owners, models and attributes are other people's text: whatever could drive a terminal is escaped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attrs import frozen
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flowstack.ledger.formats import Entry, Figures, Gap, Gaps, usd
from flowstack.ledger.intake import CUT_SHORT, SILENT_STREAM
from flowstack.ledger.queries import MISSING
from flowstack.prices.dollars import UNKNOWN, money
from flowstack.redact import visible

AT_LEAST = "+"
"""Behind a sum that does not know all its rows."""

MOST_GAPS = 20
"""Models and endpoints that the table names for each of the two kinds of gap; JSON has all."""

WHY = {
    CUT_SHORT: "cut before any usage came",
    SILENT_STREAM: "a stream without usage; with inject_usage Flowstack asks for it",
    None: "the answer has no usage",
}
"""What the reasons of rows without usage mean."""


@frozen(slots=True)
class _Column:
    """A column of the table.

    :ivar rank: columns of a higher rank go first where a terminal is too narrow.
    :ivar figure: the figure without which it is not shown, where all the rows have none.
    """

    heading: str
    cell: Callable[[Figures], str]
    rank: int = 0
    figure: str | None = None


def _count(name: str) -> Callable[[Figures], str]:
    def cell(figures: Figures) -> str:
        value = figures[name]
        return UNKNOWN if value is None else f"{value:,.0f}{_mark(figures, name)}"

    return cell


def _mark(figures: Figures, name: str) -> str:
    """What stands behind a sum that is a lower bound."""
    return AT_LEAST if name in MISSING and (figures[MISSING[name]] or figures["partial_usage"]) else ""


def _share(name: str) -> Callable[[Figures], str]:
    def cell(figures: Figures) -> str:
        count, requests = figures[name], figures["requests"]
        if not count:
            return "0%"
        if not requests:  # rows that settle earlier requests
            return f"{count:,.0f}"
        return "<0.1%" if count / requests < 0.0005 else f"{count / requests:.1%}"

    return cell


def _times(name: str) -> Callable[[Figures], str]:
    def cell(figures: Figures) -> str:
        return "/".join(_milliseconds(figures[f"{name}_p{percent}_ms"]) for percent in (50, 95, 99))

    return cell


def _milliseconds(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    return f"{value:.2f}" if value < 10 else f"{value:,.0f}"


def _cost(figures: Figures) -> str:
    cost = usd(figures)
    return money(cost) + ("" if cost is None else _mark(figures, "cost_nano_usd"))


COLUMNS = (
    _Column("requests", _count("requests")),
    _Column("errors", _count("errors"), 1),
    _Column("sockets", _count("connections"), 8, "connections"),
    _Column("prompt", _count("prompt_tokens"), 4),
    _Column("cached", _count("cached_tokens"), 6),
    _Column("cache write", _count("cache_write_tokens"), 6, "cache_write_tokens"),
    _Column("completion", _count("completion_tokens"), 4),
    _Column("reasoning", _count("reasoning_tokens"), 7),
    _Column("tokens", _count("total_tokens")),
    _Column("cost USD", _cost),
    _Column("no usage", _share("without_usage"), 3),
    _Column("no price", _share("without_price"), 3),
    _Column("first byte ms", _times("first_byte"), 8),
    _Column("duration ms", _times("duration"), 5),
    _Column("overhead ms", _times("overhead"), 9),
)

CAPTION = "Times are the 50th/95th/99th percentile."


def as_table(
    title: str, by: Sequence[str], entries: Sequence[Entry], total: Entry, gaps: Gaps, console: Console | None
) -> str:
    """Lines of aligned text, or, given a person's terminal, a table that is printed there."""
    columns = [column for column in COLUMNS if column.figure is None or total.figures[column.figure]]
    headings = [*map(visible, by), *(column.heading for column in columns)]
    rows = [_cells(entry, columns) for entry in entries]
    last = ["total", *[""] * (len(by) - 1), *(column.cell(total.figures) for column in columns)]
    if not by:
        headings, last = headings, last[1:]
    below = [*_marks(total.figures), *_gaps(gaps)]
    if console is not None:
        _print(console, title, len(by), columns, headings, rows, last)
        for line in below:
            console.print(Text(line), soft_wrap=True)
        return ""
    lines = aligned([headings, *rows, *([last] if by else [])], len(by))
    return "\n".join([title, "", *lines, "", CAPTION, *below, ""])


def _cells(entry: Entry, columns: Sequence[_Column]) -> list[str]:
    group = ["(none)" if value is None else visible(value) for value in entry.group]
    return [*group, *(column.cell(entry.figures) for column in columns)]


def aligned(lines: Sequence[Sequence[str]], left: int) -> list[str]:
    """Columns of text.

    :param left: so many of them are aligned to the left, those behind to the right.
    """
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    found = []
    for line in lines:
        padded = []
        for number, (cell, width) in enumerate(zip(line, widths, strict=True)):
            space = " " * (width - cell_len(cell))
            padded.append(cell + space if number < left else space + cell)
        found.append("  ".join(padded).rstrip())
    return found


def _marks(total: Figures) -> list[str]:
    """What the marks mean, and how many rows each sum lacks in all."""
    lacking = {name: count for name, missing in MISSING.items() if (count := total[missing])}
    if not lacking and not total["partial_usage"]:
        return []
    found = [f"{AT_LEAST} is at least: some rows do not report the figure, or only part of it."]
    if lacking:
        counts = (f"{name.removesuffix('_nano_usd').replace('_', ' ')} {n:,.0f}" for name, n in lacking.items())
        found.append(f"Rows that do not report it: {', '.join(counts)}.")
    if seen := total["partial_usage"]:
        found.append(f"Rows that report only what was seen before a cut: {seen:,.0f}.")
    return found


def _gaps(gaps: Gaps) -> list[str]:
    found = []
    for title, some in (("No price:", gaps.no_price), ("No usage:", gaps.no_usage)):
        if not some:
            continue
        unpriced = some is gaps.no_price
        lines = [
            (visible(gap.of), f"{gap.rows:,} {'rows' if gap.rows > 1 else 'row '}", visible(_why(gap, unpriced)))
            for gap in some[:MOST_GAPS]
        ]
        wide = max(len(count) for _, count, _ in lines)
        table = aligned([(f"  {name}", f"{count:>{wide}}", why) for name, count, why in lines], 3)
        found += ["", title, *table]
        if more := some[MOST_GAPS:]:
            found.append(f"  ({len(more):,} more, {sum(gap.rows for gap in more):,} rows)")
        if unpriced and (named := next(filter(None, map(_to_be_priced, some)), None)):
            found.append(f'Set prices in the configuration: [prices."{visible(named)}"]. They apply to later requests.')
    return found


def _why(gap: Gap, unpriced: bool) -> str:
    """The reason in words; one that is not known here stands as it is."""
    if not unpriced:
        return WHY.get(gap.reason) or gap.reason or ""
    kind, _, what = (gap.reason or "").partition(":")
    shown = what.replace("_", " ")
    if kind == "no_price":
        return "no price for this model" if gap.model or not what else f"no price for {what}"
    if kind == "no_price_for":
        return f"no price for {shown}"
    if kind == "figures":
        return "its figures do not add up" + (f": {shown}" if what else "")
    return "no model is named" if kind == "no_model" else gap.reason or "the reason is not recorded"


def _to_be_priced(gap: Gap) -> str | None:
    """The name under which a price would help."""
    kind, _, what = (gap.reason or "").partition(":")
    return what if kind == "no_price" and what else None if kind in ("no_model", "figures") else gap.model


def _print(
    console: Console,
    title: str,
    left: int,
    columns: Sequence[_Column],
    headings: Sequence[str],
    rows: Sequence[list[str]],
    last: list[str],
) -> None:
    """Print what fits: where the terminal is too narrow for all columns, those that matter least are left out."""
    dropped: list[str] = []
    shown = list(range(len(headings)))
    wide = console.options.update(max_width=10_000)
    for _ in columns:
        table = Table(box=box.SIMPLE_HEAD, show_footer=bool(left))
        for number in shown:
            footer = Text(last[number], style="bold") if left else Text("")
            justify = "left" if number < left else "right"
            table.add_column(Text(headings[number]), footer, justify=justify, no_wrap=number >= left)  # type: ignore[arg-type]
        for row in rows or ([] if left else [last]):
            table.add_row(*(Text(row[number]) for number in shown))
        least = max((number for number in shown if number >= left), key=lambda number: columns[number - left].rank)
        if console.measure(table, options=wide).maximum <= console.width or not columns[least - left].rank:
            break
        shown.remove(least)
        dropped.append(headings[least])
    console.print(Text(title, style="bold"))
    console.print(table)
    left_out = f" Not shown for lack of space: {', '.join(dropped)}." if dropped else ""
    console.print(Text(CAPTION + left_out, style="dim"))

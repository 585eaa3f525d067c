"""Rows in columns: a table with lines at a terminal, plain text elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence

import click
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

MOST_DRAWN = 1000
"""Rows that a table with lines is drawn around; more are shown in plain columns, as the table takes long for them."""


def show_columns(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Collection[int] = ()) -> None:
    """Print rows; the first column is never broken.

    :param numbers: columns that end, and do not begin, at one place.
    """
    if sys.stdout.isatty() and len(rows) <= MOST_DRAWN:
        table = Table()
        for number, name in enumerate(head):
            table.add_column(name, justify="right" if number in numbers else "left", no_wrap=number == 0)
        for row in rows:
            table.add_row(*map(Text, row))
        Console().print(table)
        return
    widths = [max(map(cell_len, column)) for column in zip(head, *rows, strict=True)]
    lines = []
    for row in (head, *rows):
        cells = []
        for number, (cell, width) in enumerate(zip(row, widths, strict=True)):
            space = " " * (width - cell_len(cell))
            cells.append(space + cell if number in numbers else cell + space)
        lines.append("  ".join(cells).rstrip())
    click.echo("\n".join(lines))

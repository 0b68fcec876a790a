# SPDX-License-Identifier: MIT
"""What people see, by rich: tables, and a bar that names the job in work."""

import sys
from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table as RichTable

from .tables import Table

Item = TypeVar("Item")


def show(*things: Table | str) -> None:
    """Print tables and lines."""
    # Not on a terminal there is no width to keep to, and a table must not be folded.
    console = Console(width=None if sys.stdout.isatty() else 2000)
    for thing in things:
        if isinstance(thing, str):
            console.print(thing)
            continue
        table = RichTable(title=thing.title, title_justify="left")
        for i, column in enumerate(thing.columns):
            table.add_column(column, justify="left" if i < thing.labels else "right", no_wrap=True)
        for cells in thing.rows:
            table.add_row(*map(escape, cells))  # no text in brackets is a style
        console.print(table)


def progress(items: Sequence[Item]) -> Iterator[Item]:
    """The items, with a bar on the terminal, and lines where there is none."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=len(items))
        for number, item in enumerate(items, 1):
            bar.update(task, description=str(item))
            if not console.is_terminal:
                print(f"{number}/{len(items)} {item}", file=sys.stderr, flush=True)
            yield item
            bar.advance(task)

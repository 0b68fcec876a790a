# SPDX-License-Identifier: MIT
"""Output on the terminal, with rich: tables, and a progress bar that names the current job."""

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
    # Tables are not folded if the output is not a terminal.
    console = Console(width=None if sys.stdout.isatty() else 2000)
    for thing in things:
        if isinstance(thing, str):
            console.print(thing)
            continue
        table = RichTable(title=thing.title, title_justify="left")
        for i, column in enumerate(thing.columns):
            table.add_column(column, justify="left" if i < thing.labels else "right", no_wrap=True)
        for cells in thing.rows:
            table.add_row(*map(escape, cells))  # text in brackets is not a style
        console.print(table)


def progress(items: Sequence[Item]) -> Iterator[Item]:
    """Yield the items, with a progress bar on a terminal and a line per item elsewhere."""
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

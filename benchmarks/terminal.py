# SPDX-License-Identifier: MIT
"""What people see: by rich where it is installed, as Markdown and plain lines where it is not."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from .tables import Table

Item = TypeVar("Item")


def show(*things: Table | str) -> None:
    """Print tables and lines."""
    try:
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table as RichTable
    except ImportError:
        for thing in things:
            print(f"\n{thing.title}\n{thing.markdown()}" if isinstance(thing, Table) else thing, flush=True)
        return
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
    """The items, with a bar on the terminal that names the one in work."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    except ImportError:
        yield from _counted(items)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=len(items))
        for item in items:
            bar.update(task, description=str(item))
            yield item
            bar.advance(task)


def _counted(items: Sequence[Item]) -> Iterable[Item]:
    for number, item in enumerate(items, 1):
        print(f"{number}/{len(items)} {item}", file=sys.stderr, flush=True)
        yield item

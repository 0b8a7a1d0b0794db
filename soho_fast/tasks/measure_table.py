"""The table a task prints at the end."""

from dataclasses import dataclass


@dataclass
class MeasureTable:
    """A table to print: header cells and rows of text."""

    title: str
    columns: list[str]
    rows: list[list[str]]

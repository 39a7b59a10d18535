"""A table of texts, for the terminal and for Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.markup import escape
from rich.table import Table


@dataclass(frozen=True)
class Grid:
    """Rows of texts under headings; the first column is a name.

    Attributes:
        title: above it.
        headings: of the columns.
        rows: a text for each heading; leading spaces of a name indent it.
        caption: what signs mean.
        texts: columns that are aligned to the left, as names are; the others hold numbers.
    """

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    texts: Sequence[int] = (0,)

    def table(self) -> Table:
        """For the terminal."""
        table = Table(title=escape(self.title), caption=escape(self.caption) if self.caption else None)
        for column, heading in enumerate(self.headings):
            table.add_column(escape(heading), justify="left" if column in self.texts else "right")
        for row in self.rows:
            table.add_row(*map(escape, row))
        return table

    def markdown(self) -> str:
        """Title, table and caption, a paragraph each."""
        rule = ["---" if column in self.texts else "---:" for column in range(len(self.headings))]
        lines = [self.headings, rule, *self.rows]
        cells = ((text.strip().replace("|", r"\|") for text in line) for line in lines)
        table = "\n".join(f"| {' | '.join(line)} |" for line in cells)
        return "\n\n".join(part for part in (f"{self.title}:", table, self.caption) if part) + "\n"

"""An examination in the terminal: a heading for each section, its findings, tables, and a line for each histogram."""

from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table as Grid
from rich.text import Text

from mmfm.doctor import findings
from mmfm.doctor.findings import Distribution, Finding, Report, Section
from mmfm.report.charts import round_figure

STYLE = {"OK": "green", "NOTE": "cyan", "WARNING": "bold yellow", "ERROR": "bold red"}
BARS = " ▁▂▃▄▅▆▇█"


def show(diagnosis: Report, console: Console) -> None:
    """Nothing of it is read as markup of the terminal's."""
    for section in diagnosis.sections:
        console.print(Rule(Text(section.name, "bold"), align="left", style="dim", characters="─"))
        console.print(Padding(Group(*_section(section)), (0, 0, 1, 0)))
    worst = next(level for level in reversed(findings.LEVELS) if diagnosis.count(level) or level == "OK")
    console.print(Text(diagnosis.verdict, STYLE[worst]), Text(f"({diagnosis.seconds:g} s)", "dim"), soft_wrap=True)


def _section(section: Section) -> Iterator[RenderableType]:
    for item in section.findings:
        yield _finding(item)
    for table in section.tables:
        yield Padding(_table(table), (1, 0, 0, 2))
    for distribution in section.distributions:
        yield Padding(_distribution(distribution), (1, 0, 0, 2))


def _finding(item: Finding) -> RenderableType:
    grid = Grid.grid(padding=(0, 2))
    grid.add_column(width=7)
    grid.add_column(overflow="fold")
    grid.add_row(Text(item.level, STYLE[item.level]), Text(item.message))
    for example in item.examples:
        grid.add_row("", Text(example, "dim", overflow="fold"))
    if item.count > len(item.examples) > 0:
        grid.add_row("", Text(f"and {item.count - len(item.examples):,} more", "dim"))
    return grid


def _table(table: findings.Table) -> Grid:
    title = Text(table.title, "bold") if table.title else None
    grid = Grid(box=None, pad_edge=False, title=title, title_justify="left")
    for at, name in enumerate(table.head):
        number = all(not isinstance(row[at], str) or str(row[at]).endswith("%") for row in table.rows)
        grid.add_column(Text(name, "dim"), justify="right" if number else "left", overflow="fold")
    for row in table.rows:
        grid.add_row(*(Text(cell if isinstance(cell, str) else f"{cell:,}") for cell in row))
    return grid


def _distribution(drawn: Distribution) -> RenderableType:
    """Least, median, 95 of 100, most; and the histogram, whose bars' height is the root of their counts."""
    title = f"{drawn.title}, {drawn.unit}" if drawn.unit else drawn.title
    if drawn.constant:
        every = f"{drawn.title}: {round_figure(drawn.span[0])} {drawn.unit}".rstrip()
        return Text(f"{every} in all {sum(row.n for row in drawn.rows):,}")
    grid = Grid(box=None, pad_edge=False, title=Text(title, "bold"), title_justify="left")
    grid.add_column(overflow="fold")
    for name in ("n", "least", "median", "95 %", "most"):
        grid.add_column(Text(name, "dim"), justify="right", no_wrap=True)
    grid.add_column(Text(" to ".join(map(round_figure, drawn.span)), "dim"), no_wrap=True)
    for row in drawn.rows:
        figures = [round_figure(value) for value in (row.least, row.median, row.high, row.most)]
        grid.add_row(Text(row.name), f"{row.n:,}", *figures, Text(bars(row.counts), "blue"))
    return grid


def bars(counts: tuple[int, ...]) -> str:
    """A block for each count; what is there at all is seen."""
    most = max(counts)
    return "".join(BARS[0] if not n else BARS[max(1, round((n / most) ** 0.5 * (len(BARS) - 1)))] for n in counts)

"""The picture for a README: a block for each contest that has peers, a bar for each contender, longer is faster.

SVG by hand: a few rectangles and texts need no library. There is no background, and the colours can be read on white as
on black; where a viewer says which it is, the texts have more contrast.

Law: a bar's length is its contender's speed as a share of the fastest of the contest; the figure beside it is absolute.
"""

from collections.abc import Iterable, Sequence
from html import escape

from engine.cli.bench.standing import Contender, Standing
from engine.cli.bench.table import format_each_per_s

__all__ = ["plot_svg"]

COLUMNS = 2
COLUMN_WIDTH = 450
COLUMN_GAP = 30
MARGIN = 10
NAME_WIDTH = 150
FIGURE_WIDTH = 150
BAR_WIDTH = COLUMN_WIDTH - NAME_WIDTH - FIGURE_WIDTH
BAR_HEIGHT = 14
LINE_HEIGHT = 19
HEADING_HEIGHT = 24
BLOCK_GAP = 14
FOOT_HEIGHT = 30

STYLE = """
  text { font: 12px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: #7d8590; }
  .heading { font-weight: 600; }
  .ours { fill: #2f81f7; }
  .peer { fill: #8c959f; }
  @media (prefers-color-scheme: light) { text { fill: #1f2328; } .faint { fill: #656d76; } }
  @media (prefers-color-scheme: dark) { text { fill: #e6edf3; } .faint { fill: #8d96a0; } }
"""

FOOT = "Longer is faster. Of the jobs to files, engine commits and syncs its own; the peers commit nothing."


def plot_svg(standings: Iterable[Standing]) -> str:
    """The picture, as the text of an SVG file: whole jobs first, then the kernels. Contests without peers are left out.

    Raises ValueError where none has any.
    """
    contests = [standing for standing in standings if not all(each.is_ours for each in standing.contenders)]
    if not contests:
        raise ValueError("no contest had a peer")
    contests.sort(key=lambda standing: not standing.title.startswith("job"))
    columns = _in_columns(contests)
    height = MARGIN + max(sum(map(_height, column)) for column in columns) + FOOT_HEIGHT
    width = 2 * MARGIN + COLUMNS * COLUMN_WIDTH + (COLUMNS - 1) * COLUMN_GAP
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'role="img" aria-label="engine beside its peers">',
        f"<style>{STYLE}</style>",
    ]
    for index, column in enumerate(columns):
        left, top = MARGIN + index * (COLUMN_WIDTH + COLUMN_GAP), MARGIN
        for standing in column:
            lines += _block(standing, left, top)
            top += _height(standing)
    lines += [_text(MARGIN, height - MARGIN, FOOT, "faint"), "</svg>"]
    return "\n".join(lines) + "\n"


def _in_columns(contests: Sequence[Standing]) -> list[list[Standing]]:
    """In order, a new column where the one before is at least its share of the whole."""
    share = sum(map(_height, contests)) / COLUMNS
    columns: list[list[Standing]] = [[]]
    for standing in contests:
        if len(columns) < COLUMNS and sum(map(_height, columns[-1])) + _height(standing) / 2 > share:
            columns.append([])
        columns[-1].append(standing)
    return columns


def _height(standing: Standing) -> int:
    return HEADING_HEIGHT + LINE_HEIGHT * (len(standing.contenders) + len(standing.absent)) + BLOCK_GAP


def _block(standing: Standing, left: int, top: int) -> list[str]:
    """The heading, then a line for each contender and for each who was absent."""
    fastest = min(contender.seconds for contender in standing.contenders)
    lines = [_text(left, top + BAR_HEIGHT, standing.heading, "heading")]
    top += HEADING_HEIGHT
    for contender in standing.contenders:
        length = max(1.0, BAR_WIDTH * fastest / contender.seconds)
        kind = "ours" if contender.is_ours else "peer"
        bar_left, base = left + NAME_WIDTH, top + BAR_HEIGHT - 3
        lines += [
            _text(left, base, contender.name, ""),
            f'<rect class="{kind}" x="{bar_left}" y="{top}" width="{length:.1f}" height="{BAR_HEIGHT}" rx="2"/>',
            _text(bar_left + length + 6, base, _figure(standing, contender), "faint"),
        ]
        top += LINE_HEIGHT
    for name in standing.absent:
        base = top + BAR_HEIGHT - 3
        lines += [_text(left, base, name, ""), _text(left + NAME_WIDTH, base, "absent", "faint")]
        top += LINE_HEIGHT
    return lines


def _figure(standing: Standing, contender: Contender) -> str:
    figure = f"{format_each_per_s(standing.items, contender.seconds)}/s"
    return figure if contender.memory_bytes is None else f"{figure}, {contender.memory_bytes / 1e6:,.0f} MB"


def _text(x: float, y: float, words: str, kind: str) -> str:
    attribute = f' class="{kind}"' if kind else ""
    return f'<text{attribute} x="{x:.1f}" y="{y:.1f}">{escape(words)}</text>'

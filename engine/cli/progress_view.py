"""How far a run has come, in one line: rewritten in place on a terminal, a plain line every few seconds elsewhere.

    orders  41.2M rows  4.1M/s  10.0% duplicates  epoch 37 (1.2 s ago)  312/512 MiB  waiting: sink

Laws
    - ``format_line`` is a pure function of the statistics; the writers keep no clock of their own.
    - A line never exceeds the width that it was made for: parts are left out, the least important first.
    - A view never ends a run: when its stream fails (a closed terminal) it falls silent.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

from engine.report import Statistics

__all__ = ["PlainView", "TerminalView", "format_count", "format_line", "view_on"]

PLAIN_PERIOD_S = 5.0
MIB = 2**20


def format_count(count: float) -> str:
    """A count in at most four figures: 999, 41.2k, 4.1M, 412M."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= limit * 0.9995:
            scaled = count / limit
            return f"{scaled:.0f}{unit}" if scaled >= 99.95 else f"{scaled:.1f}{unit}"
    return f"{count:.0f}"


def format_line(statistics: Statistics, width: int | None = None) -> str:
    """The line for these statistics, at most ``width`` characters where it is given."""
    rows_in = statistics.rows_in
    epoch = f"epoch {statistics.epoch}"
    if statistics.seconds_since_commit is not None:
        epoch += f" ({statistics.seconds_since_commit:.1f} s ago)"
    used, limit = statistics.memory_bytes / MIB, statistics.memory_limit_bytes / MIB
    # The figure says which part goes first when room is short.
    parts = [
        (0, statistics.pipeline),
        (0, f"{format_count(rows_in)} rows"),
        (1, f"{format_count(statistics.rows_per_s)}/s"),
        (4, f"{100 * statistics.duplicates / rows_in:.1f}% duplicates" if statistics.duplicates and rows_in else ""),
        (2, epoch if statistics.epoch else ""),
        (5, f"{used:.0f}/{limit:.0f} MiB"),
        (3, f"waiting: {statistics.waiting}" if statistics.waiting else ""),
    ]
    for least_important in range(5, -1, -1):
        line = "  ".join(part for _, part in parts if part)
        if width is None or len(line) <= width:
            return line
        parts = [(rank, part) for rank, part in parts if rank != least_important]
    return f"{statistics.pipeline}  {format_count(rows_in)} rows"[:width]


class View(Protocol):
    """What is shown during a run and left when it has ended."""

    def __call__(self, statistics: Statistics, /) -> None:
        """The run as of now."""

    def close(self) -> None:
        """Leave the last state of the run."""


class TerminalView:
    """One line, rewritten in place."""

    def __init__(self, stream: TextIO) -> None:
        self._stream: TextIO | None = stream
        self._shown = False

    def __call__(self, statistics: Statistics, /) -> None:
        """Show ``statistics`` in place of what was shown before."""
        # The last column stays free: writing there makes many terminals wrap.
        self._write(f"\r{format_line(statistics, self._columns() - 1)}\x1b[K")
        self._shown = True

    def close(self) -> None:
        """Leave the last line."""
        if self._shown:
            self._write("\n")
            self._shown = False

    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self._stream.fileno()).columns if self._stream is not None else 80
        except (OSError, ValueError):
            return 80

    def _write(self, text: str) -> None:
        self._stream = _write(self._stream, text)


class PlainView:
    """A line every PLAIN_PERIOD_S of the run, and one at its end."""

    def __init__(self, stream: TextIO) -> None:
        self._stream: TextIO | None = stream
        self._due_s = PLAIN_PERIOD_S
        self._unwritten: Statistics | None = None

    def __call__(self, statistics: Statistics, /) -> None:
        """Write ``statistics`` if a line is due."""
        self._unwritten = statistics
        if statistics.elapsed_s >= self._due_s:
            self._due_s = statistics.elapsed_s + PLAIN_PERIOD_S
            self.close()

    def close(self) -> None:
        """Write the last statistics, unless that is done."""
        if self._unwritten is not None:
            self._stream = _write(self._stream, format_line(self._unwritten) + "\n")
            self._unwritten = None


@contextmanager
def view_on(stream: TextIO) -> Iterator[View]:
    """The view that suits ``stream``, closed at the end."""
    capable = stream.isatty() and os.environ.get("TERM") != "dumb"
    view: View = TerminalView(stream) if capable else PlainView(stream)
    try:
        yield view
    finally:
        view.close()


def _write(stream: TextIO | None, text: str) -> TextIO | None:
    """Write and flush; gives the stream, or None once it cannot be written to."""
    if stream is None:
        return None
    try:
        stream.write(text)
        stream.flush()
    except (OSError, ValueError):
        return None
    return stream

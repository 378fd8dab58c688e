"""What a run tells: ``Statistics`` while it goes on, a ``Report`` at its end."""

from dataclasses import asdict, dataclass
from typing import Any

from engine.byte_size import format_bytes

__all__ = ["Counts", "Report", "Statistics"]


@dataclass(frozen=True, slots=True)
class Counts:
    """Rows in, rows dropped as duplicates, rows kept for want of a key, and rows out."""

    rows_in: int = 0
    duplicates: int = 0
    null_keys: int = 0
    rows_out: int = 0


@dataclass(frozen=True, slots=True)
class Statistics:
    """A run as of now."""

    pipeline: str
    rows_in: int
    rows_out: int
    duplicates: int
    null_keys: int
    rows_per_s: float
    """Rows in, over the last moments."""

    epoch: int
    """The last one that is committed; 0 before the first."""

    seconds_since_commit: float | None
    """None before the first commit of the run."""

    memory_bytes: int
    memory_limit_bytes: int
    waiting: str
    """What everything else waits for: the name of a stage, ``source`` or ``sink``."""

    elapsed_s: float


@dataclass(frozen=True, slots=True)
class Report:
    """What a run did. ``print`` it; ``this_run`` and ``total`` differ after a resume."""

    pipeline: str
    guarantee: str
    resumed_at_epoch: int | None
    """The last epoch of the runs before; None for a first run."""

    this_run: Counts
    total: Counts
    rows_by_partition: tuple[int, ...]
    """Rows out of all runs, the index being the partition."""

    epochs: int
    """Commits of this run."""

    elapsed_s: float
    peak_memory_bytes: int
    """The largest resident memory of the process so far."""

    output: str | None
    """Where the rows are, as it was given: a directory, or the table of a database."""

    output_files: int | None
    """Files published by this run; None where the sink writes none."""

    state: str | None

    @property
    def rows_per_s(self) -> float:
        """Rows in a second, over the whole run."""
        return self.this_run.rows_in / self.elapsed_s if self.elapsed_s > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, ``rows_per_s`` among them."""
        return asdict(self) | {"rows_per_s": self.rows_per_s}

    def __str__(self) -> str:
        resumed = f", resumed at epoch {self.resumed_at_epoch}" if self.resumed_at_epoch is not None else ""
        lines = [
            f"{self.pipeline}: complete, {self.guarantee}{resumed}",
            f"{'':<10}{'this run':>12}{'total':>13}",
            self._line("rows in", self.this_run.rows_in, self.total.rows_in),
            self._line("duplicates", self.this_run.duplicates, self.total.duplicates)
            + f"   (null keys kept: {self.total.null_keys:,})",
            self._line("rows out", self.this_run.rows_out, self.total.rows_out) + self._partitions(),
            " · ".join(self._facts()),
        ]
        return "\n".join(lines)

    @staticmethod
    def _line(name: str, this_run: int, total: int) -> str:
        return f"{name:<10}{this_run:>12,}{total:>13,}"

    def _partitions(self) -> str:
        if len(self.rows_by_partition) < 2:
            return ""
        smallest, largest = min(self.rows_by_partition), max(self.rows_by_partition)
        return f"   partitions min {short_count(smallest)}, max {short_count(largest)}"

    def _facts(self) -> list[str]:
        facts = [_rate(self.rows_per_s), f"peak {format_bytes(self.peak_memory_bytes)}"]
        if self.state is not None:
            facts.append("1 epoch" if self.epochs == 1 else f"{self.epochs:,} epochs")
        if self.output is not None:
            facts.append(f"output {self.output}{self._files()}")
        if self.state is not None:
            facts.append(f"state {self.state}")
        return facts

    def _files(self) -> str:
        if self.output_files is None:
            return ""
        return " (1 file)" if self.output_files == 1 else f" ({self.output_files:,} files)"


def _rate(rows_per_s: float) -> str:
    return f"{rows_per_s / 1e6:.1f} M rows/s" if rows_per_s >= 1e6 else f"{short_count(round(rows_per_s))} rows/s"


def short_count(count: int) -> str:
    """A count in three digits, such as ``5.58M``."""
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)

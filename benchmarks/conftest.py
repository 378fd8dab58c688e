"""The size of the work, the work itself, and the table at the end."""

import importlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pyarrow as pa
import pytest

try:
    from booking import book
except ModuleNotFoundError as error:
    if error.name is None or not error.name.startswith("pytest_benchmark"):
        raise
    raise pytest.UsageError(
        "the benchmarks need pytest-benchmark, and peers to compare with: pip install 'ingest-engine[bench]'"
    ) from error
from contest import Contest
from events import write_events

from engine.cli.bench.standing import standings_of
from engine.cli.bench.table import table_lines
from engine.testing.workload import generate


class Size(NamedTuple):
    """How much work there is."""

    rows: int
    rounds: int
    windows: tuple[int, ...]
    """Of ids, for dedup in memory."""

    ids: int
    """That dedup with sealed runs sees."""

    growth: tuple[int, ...]


LINES = pytest.StashKey[list[str]]()

SIZES = {
    "small": Size(200_000, 1, (50_000,), 500_000, (20_000, 200_000)),
    "large": Size(10_000_000, 3, (1_000_000, 10_000_000), 50_000_000, (1_000_000, 10_000_000)),
    "huge": Size(10_000_000, 5, (1_000_000, 10_000_000, 100_000_000), 200_000_000, (10_000_000, 100_000_000)),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("contests")
    group.addoption(
        "--size",
        choices=list(SIZES),
        default="small",
        help="small: 200,000 rows, for the results; large: 10 million, for the times; huge: up to 200 million",
    )
    group.addoption("--no-table", action="store_true", help="do not print the table: someone else will")


def pytest_configure(config: pytest.Config) -> None:
    # The table of contests says what pytest-benchmark's own would say, and more.
    config.option.benchmark_quiet = True
    config.stash[LINES] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Medians of rounds in turns; ratio: seconds of the contender over those of the first."""
    measured = [each.as_dict() for each in config._benchmarksession.benchmarks]
    table = [] if config.getoption("--no-table") else table_lines(standings_of(measured))
    if table:
        terminalreporter.section(f"medians, {config.getoption('--size')} size, contenders in turns")
    for line in table + config.stash[LINES]:
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def size(pytestconfig: pytest.Config) -> Size:
    return SIZES[pytestconfig.getoption("--size")]


class Peers:
    """Other libraries, where they are installed; those that are not stand in the table as absent."""

    def __init__(self) -> None:
        self.absent: list[str] = []

    def __call__(self, name: str) -> ModuleType | None:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            self.absent.append(name)
            return None


@pytest.fixture
def peer() -> Peers:
    """``peer("polars")``: the module, or None."""
    return Peers()


@pytest.fixture
def contest(request: pytest.FixtureRequest, size: Size, peer: Peers) -> Contest:
    """Where benchmarks hold their contests."""
    return Contest(size.rounds, partial(book, request.node), peer.absent)


@pytest.fixture(scope="session")
def lines(pytestconfig: pytest.Config) -> list[str]:
    """Further lines for the summary: what is no contest."""
    return pytestconfig.stash[LINES]


@pytest.fixture(scope="session")
def rows(size: Size) -> int:
    """How many rows the work has."""
    return size.rows


@pytest.fixture(scope="session")
def growth_rows(size: Size) -> tuple[int, ...]:
    return size.growth


@pytest.fixture(scope="session")
def events(rows: int) -> list[pa.RecordBatch]:
    """The rows: 10 % re-deliveries at most a tenth of the rows late, Zipf over 100,000 keys, batches of 65,536."""
    return list(generate(rows, seed=20260101, max_distance=rows // 10))


@pytest.fixture(scope="session")
def events_file(events: list[pa.RecordBatch], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The same rows as one uncompressed Arrow IPC file, without the column that tells re-deliveries."""
    path = tmp_path_factory.mktemp("events") / "events.arrow"
    write_events(path, events)
    yield path
    path.unlink()

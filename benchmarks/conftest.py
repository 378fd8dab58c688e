"""The size of the work, the work itself, and the table at the end."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pytest
from contest import Contest, standings_table

from engine.testing.workload import generate

ROWS = {"small": 200_000, "large": 10_000_000}
ROUNDS = {"small": 3, "large": 3}

CONTEST = pytest.StashKey[Contest]()
ABSENT = pytest.StashKey[set[str]]()
LINES = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--size", choices=list(ROWS), default="small", help="small: 200,000 rows; large: 10 million, by hand"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[CONTEST] = Contest(ROUNDS[config.getoption("size")])
    config.stash[ABSENT] = set()
    config.stash[LINES] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Medians of rounds in turns; ratio: seconds of the contender over those of the first."""
    if standings := config.stash[CONTEST].standings:
        terminalreporter.section(f"medians of {config.stash[CONTEST].rounds} rounds, contenders in turns")
        for line in standings_table(standings):
            terminalreporter.write_line(line)
    for line in config.stash[LINES]:
        terminalreporter.write_line(line)
    if absent := config.stash[ABSENT]:
        terminalreporter.write_line(f"absent, so not measured: {', '.join(sorted(absent))}")


@pytest.fixture(scope="session")
def contest(pytestconfig: pytest.Config) -> Contest:
    """Where benchmarks hold their contests."""
    return pytestconfig.stash[CONTEST]


@pytest.fixture(scope="session")
def lines(pytestconfig: pytest.Config) -> list[str]:
    """Further lines for the summary."""
    return pytestconfig.stash[LINES]


@pytest.fixture(scope="session")
def rows(pytestconfig: pytest.Config) -> int:
    """How many rows the work has."""
    return ROWS[pytestconfig.getoption("size")]


@pytest.fixture(scope="session")
def events(rows: int) -> list[pa.RecordBatch]:
    """The rows: 10 % re-deliveries at most a tenth of the rows late, Zipf over 100,000 keys, batches of 65,536."""
    return list(generate(rows, seed=20260101, max_distance=rows // 10))


@pytest.fixture(scope="session")
def events_file(events: list[pa.RecordBatch], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The same rows as one uncompressed Arrow IPC file."""
    path = tmp_path_factory.mktemp("events") / "events.arrow"
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, events[0].schema) as writer:
        for batch in events:
            writer.write_batch(batch)
    yield path
    path.unlink()


class Peers:
    """Other libraries, where they are installed; those that are not are named in the summary."""

    def __init__(self, absent: set[str]) -> None:
        self._absent = absent

    def __call__(self, name: str) -> ModuleType | None:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            self._absent.add(name)
            return None


@pytest.fixture(scope="session")
def peer(pytestconfig: pytest.Config) -> Peers:
    """``peer("polars")``: the module, or None."""
    return Peers(pytestconfig.stash[ABSENT])

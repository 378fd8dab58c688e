"""Finds the benchmarks, runs them with pytest in a child process, and shows what they measured.

The folder ``benchmarks/`` of the sources lies in a wheel as ``engine/benchmarks``: both are found by path, next to this
package or in it, as pytest collects by path. So a wheel can measure itself where it is installed, without a checkout.

Laws
    - The table goes to stdout; what pytest says goes to stderr as it comes.
    - What was measured is shown even if other benchmarks failed; then the command fails all the same.
    - Files that are wanted are tried before the work, and replaced whole when it is done: what stops it before leaves
      them as they were. The working directory gets nothing else.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from engine.cli.bench.plot import plot_svg
from engine.cli.bench.standing import Standing, standings_of
from engine.cli.bench.table import table_lines
from engine.errors import EngineError

__all__ = ["BenchmarkError", "benchmark_names", "run_benchmarks"]

PREFIX = "bench_"
PYTEST = ("-P", "-m", "pytest", "-v", "--tb=short", "--no-header", "--no-table")
INSTALL = "pip install 'ingest-engine[bench]'"


class BenchmarkError(EngineError):
    """The benchmarks cannot be run, or some of them failed. Mend what the message names."""


def benchmark_names() -> list[str]:
    """What ``run_benchmarks`` takes. Raises BenchmarkError where there are no benchmarks."""
    return sorted(path.stem.removeprefix(PREFIX) for path in _folder().glob(f"{PREFIX}*.py"))


def run_benchmarks(names: Sequence[str], *, size: str, json_file: Path | None, plot_file: Path | None) -> None:
    """Run the benchmarks of these names, or all, print the table, and write the files that are wanted.

    Raises BenchmarkError.
    """
    if find_spec("pytest_benchmark") is None:
        raise BenchmarkError(f"bench: pytest-benchmark is not installed: {INSTALL} brings it, and the peers.")
    for file in (json_file, plot_file):
        if file is not None:
            _check_writable(file)
    folder = _folder()
    files = [str(folder / f"{PREFIX}{name}.py") for name in names] or [str(folder)]
    with tempfile.TemporaryDirectory(prefix="engine-bench-") as scratch:
        measured = Path(scratch) / "measured.json"
        # Its own temporary directory: the one that pytest shares is tidied by whoever runs pytest at the same time.
        places = [f"--basetemp={scratch}/work", f"--benchmark-json={measured}", f"--benchmark-storage={scratch}/saved"]
        command = [sys.executable, *PYTEST, f"--size={size}", *places, *files]
        done = subprocess.run(command, stdout=2, stdin=subprocess.DEVNULL)
        standings = _standings(measured)
        if json_file is not None and standings:
            _replace(json_file, measured.read_bytes())
    for line in table_lines(standings):
        print(line)
    sys.stdout.flush()
    if plot_file is not None and standings:
        _plot(standings, plot_file)
    if done.returncode:
        raise BenchmarkError("bench: some benchmarks failed, or answered wrongly; what they said is above.")


def _folder() -> Path:
    package = Path(__file__).parents[2]
    for folder in (package / "benchmarks", package.parent / "benchmarks"):
        if (folder / "contest.py").is_file():
            return folder
    raise BenchmarkError(
        f"bench: no benchmarks beside {package} or in it. They are in the wheel and in the folder benchmarks/ of the "
        f"sources: {INSTALL}."
    )


def _standings(measured: Path) -> list[Standing]:
    """None where pytest did not come so far."""
    if not measured.is_file():
        return []
    return standings_of(json.loads(measured.read_bytes())["benchmarks"])


def _plot(standings: Sequence[Standing], file: Path) -> None:
    try:
        picture = plot_svg(standings)
    except ValueError as error:
        raise BenchmarkError(f"bench: nothing to draw: {error}. Peers come with {INSTALL}.") from error
    _replace(file, picture.encode())


def _check_writable(file: Path) -> None:
    """Raise BenchmarkError where ``_replace`` would, as far as one can know."""
    place = file.resolve()
    if not place.parent.is_dir():
        raise BenchmarkError(f"bench: no directory {place.parent} for {file.name}; make it first.")
    if place.exists() and not place.is_file():
        raise BenchmarkError(f"bench: {file} is there and no file; name a file to write.")
    try:
        with tempfile.TemporaryFile(dir=place.parent):
            pass
    except OSError as error:
        raise _unwritable(file, error) from error


def _replace(file: Path, content: bytes) -> None:
    """Write the file beside its place, then put it there."""
    place = file.resolve()
    beside = place.with_name(f".{place.name}.new")
    try:
        beside.write_bytes(content)
        beside.replace(place)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise _unwritable(file, error) from error


def _unwritable(file: Path, error: OSError) -> BenchmarkError:
    return BenchmarkError(f"bench: {file} cannot be written: {error.strerror}; name another place.")

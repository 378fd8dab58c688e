"""The byte budget against what the kernel says: anonymous resident memory of a whole run, in a process of its own."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("resident.py")


def peak_bytes(directory: Path, rows: int, memory: str, within: int) -> int:
    directory.mkdir()
    arguments = [sys.executable, str(SCRIPT), str(directory), str(rows), memory, str(within)]
    return int(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout)


def test_the_default_budget_holds(tmp_path: Path) -> None:
    assert peak_bytes(tmp_path / "run", 1_000_000, "512MiB", 10_000_000) <= 512 * 2**20 * 1.15 + 150e6


def test_memory_does_not_grow_with_the_input(tmp_path: Path) -> None:
    # A small budget and a window that is full soon: from then on nothing may be added.
    short = peak_bytes(tmp_path / "short", 500_000, "64MiB", 200_000)
    long = peak_bytes(tmp_path / "long", 1_500_000, "64MiB", 200_000)
    assert long <= short * 1.2 + 10e6

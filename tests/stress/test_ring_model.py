"""The sleep of the ring, searched through: every interleaving of its two threads and of their store buffers.

The model is `ring_sleep.pml`; spin makes a program of it that visits every state. Where a line of the protocol is taken
away the same search must find an error, or it would prove nothing.
"""

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

MODEL = Path(__file__).with_name("ring_sleep.pml")
LOST_WAKE_UP = "invalid end state"
TORN_ITEM = "assertion violated (item==(own_head+1))"


@dataclass(frozen=True)
class Search:
    """What a search found: states explored, errors, and its whole output."""

    states: int
    errors: int
    output: str


@pytest.fixture
def search(tool: Callable[[str], str], tmp_path: Path) -> Callable[..., Search]:
    """Searches the model, with these names defined, without any reduction; to optimise takes longer than to search."""

    def run(*defines: str) -> Search:
        spin, compiler = tool("spin"), tool("gcc")
        for step in (
            [spin, *(f"-D{name}" for name in defines), "-a", str(MODEL)],
            [compiler, "-O0", "-DSAFETY", "-DNOREDUCE", "-o", "pan", "pan.c"],
        ):
            made = subprocess.run(step, cwd=tmp_path, capture_output=True, text=True)
            assert made.returncode == 0, made.stdout + made.stderr
        output = subprocess.run([tmp_path / "pan", "-m100000"], cwd=tmp_path, capture_output=True, text=True).stdout
        states = re.search(r"(\d+) states, stored", output)
        errors = re.search(r"errors: (\d+)", output)
        assert states, output
        assert errors, output
        print(f"{' '.join(defines) or 'the protocol'}: {int(states[1]):,} states explored, {errors[1]} errors")
        return Search(int(states[1]), int(errors[1]), output)

    return run


def test_no_interleaving_loses_a_wake_up(search):
    found = search("ITEMS=5", "TIMEOUTS=3")
    assert found.errors == 0, found.output
    assert found.states > 500_000
    assert "max search depth too small" not in found.output
    # Every statement of both threads was reached: nothing is right only because it never happened.
    assert re.findall(r"unreached in proctype (\w+)\n\t\(0 of \d+ states\)", found.output) == ["Producer", "Consumer"]


@pytest.mark.parametrize(
    ("taken_away", "error"),
    [
        ("NO_PRODUCER_FENCE", LOST_WAKE_UP),
        ("NO_CONSUMER_FENCE", LOST_WAKE_UP),
        ("NO_SECOND_LOOK", LOST_WAKE_UP),
        ("UNLATCHED_SIGNAL", LOST_WAKE_UP),
        ("RELAXED_PUBLISH", TORN_ITEM),
    ],
)
def test_the_search_finds_what_goes_wrong_without(search, taken_away, error):
    found = search(taken_away)
    assert found.errors == 1, found.output
    assert error in found.output


def test_the_model_has_the_fences_and_the_names_of_the_code(sources):
    code, model = (sources / "ring.hpp").read_text(), MODEL.read_text()
    assert code.count("std::atomic_thread_fence(std::memory_order_seq_cst);") == 2
    assert len(re.findall(r"^ +fence\(\w+\)", model, re.MULTILINE)) == 2
    for name in ("head", "tail", "cached_head", "cached_tail", "armed", "closed", "signalled", "mutex", "was_closed"):
        assert re.search(rf"\b{name}_?\b", code), name
        assert re.search(rf"\b{name}\b", model), name

"""``engine simulate``: a pipeline under power cuts and failing disks, a seed after the other; the seeds that fail."""

import sys
from collections import Counter

from engine.cli.reference import load_pipeline
from engine.errors import EngineError
from engine.testing.simulate import simulate

__all__ = ["SimulationFailed", "run_simulation"]


class SimulationFailed(EngineError):  # noqa: N818 - what happened
    """Some seeds ended with other rows than a run to which nothing happened."""


def run_simulation(reference: str, *, first: int, seeds: int) -> None:
    """Simulate and print: each seed that fails, then what fired. Raises SimulationFailed, PipelineError."""
    fired: Counter[str] = Counter()
    failed, attempts, calm, stopped = [], 0, 0, 0
    for outcome in simulate(lambda: load_pipeline(reference), seeds=range(first, first + seeds)):
        fired += outcome.fired
        attempts += outcome.attempts
        calm += not outcome.fired
        stopped += outcome.stopped is not None
        if outcome.problem is not None:
            failed.append(outcome.seed)
            print(f"seed {outcome.seed}: {outcome.problem}")
            print(f"  again: engine simulate {reference} --first {outcome.seed} --seeds 1", flush=True)
        if sys.stderr.isatty():
            print(f"\r{outcome.seed - first + 1:,} of {seeds:,} seeds", end="", file=sys.stderr)
    print(f"{seeds:,} seeds, {attempts:,} starts, {len(failed):,} failed; in {calm:,} no fault fired")
    print(f"  {stopped:,} refused for good, as they should where bits flip and syncs lie")
    print("  " + ", ".join(f"{name} {count:,}" for name, count in sorted(fired.items())))
    if failed:
        shown = ", ".join(str(seed) for seed in failed[:10])
        raise SimulationFailed(
            f"{len(failed)} of {seeds} seeds failed: {shown}.\n  Repeat one with --first SEED --seeds 1."
        )

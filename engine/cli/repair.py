"""``engine checkpoint repair``: what was damaged and kept, and what took its place."""

import sys
from collections.abc import Callable

from engine._runtime.repair import repair
from engine._runtime.run import Options
from engine.cli.execution import interruptible
from engine.cli.progress_view import view_on
from engine.pipeline import Pipeline

__all__ = ["repair_state"]


def repair_state(load: Callable[[], Pipeline], directory: str, *, memory: str) -> None:
    """Repair the state of the pipeline that ``load`` gives and print what was done.

    Raises as ``repair_async``, and Terminated after SIGTERM.
    """
    with interruptible(" The state is as it was, or repaired. Run it again.") as job:
        pipeline = load()
        job.name = pipeline.name
        with view_on(sys.stderr) as view:
            repaired = repair(pipeline, Options(state=directory, memory=memory, progress=view))
    if not repaired.damaged:
        print(f"{pipeline.name}: no file is damaged; nothing was changed")
        return
    print(f"{pipeline.name}: rebuilt through epoch {repaired.epoch} from {repaired.rows:,} rows; the next run goes on")
    for file in repaired.damaged:
        print(f"  damaged, kept  {file.path}")
    for path in repaired.rebuilt:
        print(f"  rebuilt        {path}")

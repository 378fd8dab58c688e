"""The ways in: ``run`` for blocking callers, ``run_async`` under Trio, ``collect`` for rows in memory."""

import os
from collections.abc import Callable
from functools import partial

import pyarrow as pa
import trio

from engine._runtime.collected import Collected
from engine._runtime.run import Options, execute
from engine.byte_size import ByteSize
from engine.errors import PipelineError
from engine.pipeline import Pipeline
from engine.report import Report, Statistics

__all__ = ["collect", "run", "run_async"]

Progress = Callable[[Statistics], None]


async def run_async(
    pipeline: Pipeline,
    *,
    state: str | os.PathLike[str] | None = None,
    memory: ByteSize = "512MiB",
    commit_every_s: float = 5.0,
    commit_every_bytes: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Run ``pipeline`` to the end of its sources, under Trio; the same as ``run`` otherwise.

    Cancelled, it ends without a further commit, and the next run resumes at the last one; an attempt to publish that is
    under way is finished first.
    """
    sink = pipeline.graph.sink
    if sink is None:
        raise PipelineError(["write: there is no sink; call write(), or collect() its rows"], pipeline=pipeline.name)
    options = Options(
        state=state,
        memory=memory,
        commit_every_s=commit_every_s,
        commit_every_bytes=commit_every_bytes,
        progress=progress,
    )
    return await execute(pipeline, sink, options)


def run(
    pipeline: Pipeline,
    *,
    state: str | os.PathLike[str] | None = None,
    memory: ByteSize = "512MiB",
    commit_every_s: float = 5.0,
    commit_every_bytes: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Run ``pipeline`` to the end of its sources and give the report. Run it again after a crash: it resumes.

    ``state``: a directory that holds what makes a run resumable, in ``<state>/<pipeline name>/``; one process at a
    time. Needed for an exactly-once sink. ``memory``: the byte budget, such as ``"2GiB"``. A commit is due every
    ``commit_every_s`` seconds or ``commit_every_bytes`` bytes of input, whichever comes first. ``progress``: called
    with ``Statistics`` about
    five times a second.

    Ctrl-C finishes and commits what was read, then raises KeyboardInterrupt; a second one gives up at once. Raises
    EngineError: PipelineError before anything was touched; SourceError, StageError, SinkError or StateError later, with
    everything up to the last commit safe.
    """
    return trio.run(
        partial(
            run_async,
            pipeline,
            state=state,
            memory=memory,
            commit_every_s=commit_every_s,
            commit_every_bytes=commit_every_bytes,
            progress=progress,
        ),
        restrict_keyboard_interrupt_to_checkpoints=True,
    )


def collect(pipeline: Pipeline, *, memory: ByteSize = "512MiB") -> pa.Table:
    """Run a pipeline without ``write`` and give its rows as a table, partition by partition.

    The rows themselves are outside the ``memory`` budget. Nothing is durable. Raises EngineError.
    """
    if pipeline.graph.sink is not None:
        raise PipelineError(["collect: the pipeline writes to a sink; run() it"], pipeline=pipeline.name)
    sink = Collected()
    trio.run(execute, pipeline, sink, Options(memory=memory), restrict_keyboard_interrupt_to_checkpoints=True)
    return sink.table()

"""A run from outside: checks the pipeline, opens the state, lets the scheduler work, and reports.

Laws
    - Nothing is touched before the pipeline is found without fault.
    - Ctrl-C drains: what was read is finished and committed, then KeyboardInterrupt is raised. A second one gives up
      at once.
    - What leaves is one exception: the first failure, with a note that says up to where all is safe.
"""

import contextlib
import os
import signal
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import trio

from engine._core import pool
from engine._runtime.arrow_memory import arrow_memory
from engine._runtime.budget import MINIMUM_BYTES
from engine._runtime.coordinator import Cadence, counts, partition_counts
from engine._runtime.failure import root_cause
from engine._runtime.progress_watch import watch
from engine._runtime.scheduler import Scheduler
from engine._runtime.worker import Workers
from engine.background import BackgroundThread
from engine.byte_size import ByteSize, format_bytes, parse_bytes
from engine.checkpoint.fence import FencedStorage
from engine.checkpoint.store import StateDirectory
from engine.errors import EngineError, PipelineError
from engine.instrument import SILENT, Instrument
from engine.nature import monotonic_s, random_id
from engine.path_argument import path_fault
from engine.pipeline import Pipeline
from engine.report import Counts, Report, Statistics
from engine.sink import Holding, Located, OutputFiles, Sink, StagesInState, UsesStorage
from engine.storage import Storage

__all__ = ["Options", "execute"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a pipeline is run."""

    state: str | os.PathLike[str] | None = None
    memory: ByteSize = "512MiB"
    commit_every_s: float = 5.0
    commit_every_bytes: int | None = None
    progress: Callable[[Statistics], None] | None = None
    storage: Storage | None = None
    instrument: Instrument = SILENT
    workers: Callable[[], Workers] = Workers
    background: Callable[[str], BackgroundThread] = BackgroundThread

    def memory_bytes(self) -> int:
        """The byte budget. Raises PipelineError for what is no size, or too small a one."""
        size_bytes = parse_bytes(self.memory)
        if size_bytes < MINIMUM_BYTES:
            raise PipelineError(f"memory: expected at least {format_bytes(MINIMUM_BYTES)}, found {self.memory!r}")
        return size_bytes

    def cadence(self) -> Cadence:
        """When commits are due. Raises PipelineError for figures that make no sense."""
        if not isinstance(self.commit_every_s, int | float):
            raise PipelineError(f"commit_every_s must be a number of seconds, found {self.commit_every_s!r}")
        if not isinstance(self.commit_every_bytes, int | None):
            raise PipelineError(f"commit_every_bytes must be a number of bytes, found {self.commit_every_bytes!r}")
        if not self.commit_every_s > 0:
            raise PipelineError(f"commit_every_s must be above zero, found {self.commit_every_s}")
        if self.commit_every_bytes is not None and self.commit_every_bytes < 1:
            raise PipelineError(f"commit_every_bytes must be above zero, found {self.commit_every_bytes}")
        return Cadence(self.commit_every_s, self.commit_every_bytes)


async def execute(pipeline: Pipeline, sink: Sink, options: Options) -> Report:
    """Run ``pipeline`` into ``sink``. Raises EngineError, KeyboardInterrupt, and BaseException of the functions."""
    try:
        return await _execute(pipeline, sink, options)
    except BaseExceptionGroup as group:
        # An interrupt may strike wherever a nursery is open, also before and after we listen for it.
        cause = root_cause(group)
        if isinstance(cause, trio.Cancelled):
            raise
        raise cause from None


async def _execute(pipeline: Pipeline, sink: Sink, options: Options) -> Report:
    started_s = monotonic_s()
    durable = options.state is not None
    if durable and (fault := path_fault(options.state, "directory")):
        raise PipelineError(f"state: {fault}", pipeline=pipeline.name)
    cadence = options.cadence()
    memory_bytes = options.memory_bytes()
    if faults := pipeline.graph.faults(durable=durable):
        raise PipelineError(faults, pipeline=pipeline.name)
    if isinstance(sink, OutputFiles | StagesInState):
        sink.pipeline = pipeline.name
    with contextlib.ExitStack() as stack:
        stack.enter_context(arrow_memory())
        storage = options.storage or Storage()
        state = None
        scratch = ""
        if options.state is not None:
            path = os.path.join(os.fspath(options.state), pipeline.name)
            opened = StateDirectory.open(storage, path, fingerprint=pipeline.graph.fingerprint())
            state = stack.enter_context(contextlib.closing(opened))
            stack.enter_context(_fenced(sink, state))
        elif any(stage.fingerprint() is not None for stage in pipeline.graph.stages):
            scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="engine-", ignore_cleanup_errors=True))
        if isinstance(sink, Holding):
            stack.callback(sink.close)
        incarnation = state.incarnation if state is not None else random_id(128)
        scheduler = Scheduler(
            pipeline.graph,
            sink,
            state=state,
            storage=storage,
            scratch=scratch,
            memory_bytes=memory_bytes,
            cadence=cadence,
            instrument=options.instrument,
            workers=options.workers(),
            background=options.background("engine-runs"),
            seed=state.seed if state is not None else bytes.fromhex(random_id(128)),
            incarnation=incarnation,
        )
        pool.set_limit(scheduler.budget.idle_bytes)
        interrupted = await _run(scheduler, pipeline.name, memory_bytes, options.progress)
        report = _report(pipeline, sink, scheduler, state, monotonic_s() - started_s)
    if interrupted:
        raise KeyboardInterrupt
    return report


@contextmanager
def _fenced(sink: Sink, state: StateDirectory) -> Iterator[None]:
    """Let a sink change its files only while the state directory is ours."""
    if not isinstance(sink, UsesStorage) or sink.storage is None:
        yield
        return
    storage = sink.storage
    sink.storage = FencedStorage(storage, state.check)
    try:
        yield
    finally:
        sink.storage = storage


async def _run(
    scheduler: Scheduler, name: str, memory_bytes: int, progress: Callable[[Statistics], None] | None
) -> bool:
    """Run to the end; whether an interrupt cut it short."""
    try:
        async with _interrupts(scheduler) as interrupt, watch(scheduler, name, memory_bytes, progress):
            await scheduler.run()
    except EngineError as error:
        coordinator = scheduler.coordinator
        if coordinator is not None and coordinator.committed:
            error.add_note(f"Everything up to epoch {coordinator.committed} is committed; the next run resumes there.")
        raise
    return interrupt.is_set()


@asynccontextmanager
async def _interrupts(scheduler: Scheduler) -> AsyncIterator[trio.Event]:
    """Turns Ctrl-C into a drain, where signals can be had: in the main thread."""
    interrupt = trio.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return

    async def listen() -> None:
        with trio.open_signal_receiver(signal.SIGINT) as signals:
            listening.set()
            async for _ in signals:
                if interrupt.is_set():
                    scheduler.abort()
                interrupt.set()
                scheduler.drain()

    listening = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        await listening.wait()
        failure: BaseException | None = None
        try:
            yield interrupt
        except BaseException as error:
            # Held until the nursery is left, so that it is not wrapped in a group.
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


def _report(
    pipeline: Pipeline, sink: Sink, scheduler: Scheduler, state: StateDirectory | None, elapsed_s: float
) -> Report:
    coordinator = scheduler.coordinator
    if coordinator is None or state is None:
        duplicates, null_keys = scheduler.duplicates()
        total = Counts(scheduler.counters.rows_in, duplicates, null_keys, scheduler.counters.rows_out)
        before = Counts()
        by_partition: tuple[int, ...] = ()
    else:
        total = counts(coordinator.totals)
        before = counts(state.recovery.last_commit.counters) if state.recovery.last_commit is not None else Counts()
        by_partition = partition_counts(coordinator.totals, pipeline.graph.partitions)
    return Report(
        pipeline=pipeline.name,
        guarantee=sink.guarantee.value,
        resumed_at_epoch=state.recovery.last_commit.epoch
        if state is not None and state.recovery.last_commit is not None
        else None,
        this_run=Counts(
            total.rows_in - before.rows_in,
            total.duplicates - before.duplicates,
            total.null_keys - before.null_keys,
            total.rows_out - before.rows_out,
        ),
        total=total,
        rows_by_partition=by_partition,
        epochs=coordinator.commits if coordinator is not None else 0,
        elapsed_s=elapsed_s,
        peak_memory_bytes=_peak_memory_bytes(),
        output=(sink.location or None) if isinstance(sink, Located) else None,
        output_files=sink.published_files if isinstance(sink, OutputFiles) else None,
        state=state.path if state is not None else None,
    )


def _peak_memory_bytes() -> int:
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

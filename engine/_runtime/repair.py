"""Repair: damaged states of stages, rebuilt by reading what was committed once more, with the sink muted.

    verify ─► replay into <path>/repair ─► compare what was counted ─► rename beside the damaged ─► one new manifest

Laws
    - Nothing is emitted, no source is told anything, and no file that the last COMMIT names is changed or removed: the
      damaged ones stay where they are.
    - The new manifest is the only step that counts. Before it the directory is what it was, but for ``repair`` and
      rebuilt directories that nothing names; after it the same COMMIT names the rebuilt ones.
    - Whatever cannot be rebuilt exactly is refused, and what was counted once must be counted again.
    - The lock is held from before the files are read to the end.
    - Ctrl-C ends it before the new manifest, or comes after all of it. ``repair`` goes however it ends, unless the
      process is killed or the disk refuses: then with the next repair.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

import trio

from engine._runtime.replay import muted, replay_faults
from engine._runtime.run import Options, execute
from engine.checkpoint.inspection import Verification, inspect, verify
from engine.checkpoint.manifest import Commit
from engine.checkpoint.replaced import noted
from engine.checkpoint.store import StateDirectory, check_fingerprint, stage_directory, take
from engine.errors import CorruptState, PipelineError, StateError
from engine.pipeline import Pipeline
from engine.stage import StageState
from engine.stages.window_files import FileCheck
from engine.storage import Lock, Storage

__all__ = ["Repaired", "repair", "repair_async"]


@dataclass(frozen=True, slots=True)
class Repaired:
    """What a repair did: nothing, where there are no ``damaged`` files."""

    path: str
    epoch: int | None
    """That of the last COMMIT; None without one."""

    damaged: tuple[FileCheck, ...] = ()
    """Still where they were."""

    rebuilt: tuple[str, ...] = ()
    """The directories that took the place of theirs."""

    rows: int = 0
    """Rows that were read again."""


def repair(pipeline: Pipeline, options: Options) -> Repaired:
    """``repair_async`` for blocking callers. Ctrl-C is heard at once while the files are read."""
    with _verified(pipeline, options) as found:
        return trio.run(_repaired, pipeline, options, *found, restrict_keyboard_interrupt_to_checkpoints=True)


async def repair_async(pipeline: Pipeline, options: Options) -> Repaired:
    """Rebuild the damaged files of the last COMMIT of ``pipeline`` in ``options.state``. May be repeated.

    Raises StateError where the state is in use, of another pipeline, or cannot be rebuilt; CorruptState for a damaged
    manifest; what a run raises where the replay fails; KeyboardInterrupt after Ctrl-C. The state is as it was then, or
    repaired.
    """
    with _verified(pipeline, options) as found:
        return await _repaired(pipeline, options, *found)


@contextmanager
def _verified(pipeline: Pipeline, options: Options) -> Iterator[tuple[Storage, Lock, Verification]]:
    """Hold the lock of the state, and tell what is damaged in it. Raises as ``repair_async``."""
    if faults := pipeline.graph.faults(durable=True):
        raise PipelineError(faults, pipeline=pipeline.name)
    storage = options.storage or Storage()
    path = os.path.join(os.fspath(options.state or ""), pipeline.name)
    _inspected(storage, path)  # before LOCK is made in what is no state
    lock = take(storage, path)
    try:
        verification = verify(storage, path)
        check_fingerprint(path, verification.inspection.last_commit, pipeline.graph.fingerprint())
        yield storage, lock, verification
    except OSError as error:
        raise StateError(f"{path}: cannot be repaired: {error}.\n  Mend it and repair again.") from error
    finally:
        lock.release()


async def _repaired(
    pipeline: Pipeline, options: Options, storage: Storage, lock: Lock, verification: Verification
) -> Repaired:
    path, commit = verification.inspection.path, verification.inspection.last_commit
    scratch = os.path.join(path, "repair")
    _remove(storage, scratch)
    if commit is None or not verification.damaged:
        return Repaired(path, commit.epoch if commit is not None else None)
    if faults := replay_faults(pipeline, commit):
        lines = "".join(f"\n  {fault}" for fault in faults)
        raise StateError(f"{path}: its states cannot be rebuilt:{lines}\n  Nothing was changed. {_OTHERWISE}")
    try:
        replayed = await _replayed(pipeline, replace(options, state=scratch, storage=storage), commit)
        found = _rebuilt(verification, os.path.join(scratch, pipeline.name), replayed)
        with StateDirectory.open(storage, path, fingerprint=pipeline.graph.fingerprint(), lock=lock) as state:
            state.adopt(found)
            rebuilt = tuple(state.stage_directory(stage, partition) for stage, partition in found)
    finally:
        with suppress(OSError):  # what stays is removed by the next repair
            _remove(storage, scratch)
    return Repaired(path, commit.epoch, verification.damaged, rebuilt, replayed.counters.get("rows_in", 0))


_OTHERWISE = "Bring back a whole copy, or begin anew with another state= and output."


def _inspected(storage: Storage, path: str) -> None:
    """Raise where there is no manifest that can be read, and say why that ends here."""
    try:
        inspect(storage, path)
    except CorruptState as error:
        error.add_note("  It cannot be repaired: only the manifest tells up to where the sources were committed.")
        raise


async def _replayed(pipeline: Pipeline, options: Options, commit: Commit) -> Commit:
    """Run everything up to ``commit`` without effect; the last COMMIT of that. Raises StateError unless they agree."""
    quiet, sink = muted(pipeline, commit)
    await execute(quiet, sink, options)
    assert options.storage is not None
    assert options.state is not None
    replayed = inspect(options.storage, os.path.join(os.fspath(options.state), pipeline.name)).last_commit
    counters = replayed.counters if replayed is not None else {}
    differences = [
        f"\n  {name}: {commit.counters.get(name, 0):,} were committed, {counters.get(name, 0):,} came again"
        for name in sorted(commit.counters | counters)
        if commit.counters.get(name, 0) != counters.get(name, 0)
    ]
    if differences or replayed is None:
        raise StateError(
            f"{pipeline.name}: read again, the sources and stages do not give what was committed:{''.join(differences)}"
            f"\n  Nothing was changed. Run them as they were, on all rows since the first run. Or: {_OTHERWISE}"
        )
    return replayed


def _rebuilt(
    verification: Verification, scratch: str, replayed: Commit
) -> dict[tuple[str, int], tuple[str, StageState]]:
    """The directory and the state of each lane with a damaged file. Raises StateError where another one came of it."""
    commit = verification.inspection.last_commit
    assert commit is not None
    damaged = [os.path.split(file.path) for file in verification.damaged]
    found: dict[tuple[str, int], tuple[str, StageState]] = {}
    for stage, states in commit.states.items():
        for partition, state in enumerate(states):
            directory = stage_directory(verification.inspection.path, stage, partition, state)
            harmed = [name for place, name in damaged if place == directory]
            if state is None or not harmed:
                continue
            again = replayed.states[stage][partition]
            if again is None or again.get("tail") != state.get("tail"):
                raise StateError(
                    f"{stage}, partition {partition}: {state.get('tail'):,} keys were committed, "
                    f"{(again or {}).get('tail', 0):,} came again.\n  Nothing was changed. {_OTHERWISE}"
                )
            found[stage, partition] = stage_directory(scratch, stage, partition), noted(again, state, directory, harmed)
    return found


def _remove(storage: Storage, directory: str) -> None:
    """Remove what an earlier repair had begun, or this one does not need any more."""
    if not storage.exists(directory):
        return
    for name in storage.list(directory):
        inner = os.path.join(directory, name)
        if storage.is_directory(inner):
            _remove(storage, inner)
        else:
            storage.unlink(inner)
    storage.remove_directory(directory)

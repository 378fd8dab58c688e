"""The planted bugs: each is a fault that engine could have, put into a name of engine's, and the hunt that finds it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pytest
import trio
from crash import test_file_crashes, test_log_crashes, test_state_crashes
from simulation import test_simulate

from engine import nature
from engine._runtime.coordinator import Coordinator
from engine._runtime.intake import Intake
from engine._runtime.lane import SinkLane
from engine.checkpoint import manifest, store
from engine.checkpoint.protocol import History
from engine.checkpoint.store import StateDirectory
from engine.errors import LogError
from engine.log import groups, log, partition, retention, segment, staging
from engine.log.groups import Groups
from engine.log.partition import Partition
from engine.progress import Barrier, Token
from engine.sinks.output_directory import OutputDirectory
from engine.stages.id_log import IdLog
from engine.stages.id_runs import IdRuns
from engine.stages.key_window import KeyWindow
from engine.stages.sealed_run import NOWHERE, SealedRun

__all__ = ["ELSEWHERE", "PLANTED", "Mutant"]

Patch = pytest.MonkeyPatch


@dataclass(frozen=True)
class Mutant:
    """A bug, how it is planted, and the name of the hunt that finds it."""

    name: str
    plant: Callable[[Patch], None]
    hunt: str


PLANTED: list[Mutant] = []


def bug(name: str, hunt: str) -> Callable[[Callable[[Patch], None]], Callable[[Patch], None]]:
    def note(plant: Callable[[Patch], None]) -> Callable[[Patch], None]:
        PLANTED.append(Mutant(name, plant, hunt))
        return plant

    return note


def _unsynced(write: Callable[..., Any]) -> Callable[..., Any]:
    """``write`` on a storage whose files and directories are not synced."""

    def unsynced(storage: Any, *args: Any, **options: Any) -> Any:
        class Unsynced:
            def __getattr__(self, name: str) -> Any:
                return getattr(storage, name)

            def create(self, path: str) -> Any:
                file = storage.create(path)
                file.sync = lambda: None
                return file

            def sync_directory(self, path: str) -> None:
                pass

        return write(Unsynced(), *args, **options)

    return unsynced


# The log.


@bug("a group of appends is not synced", "log_states")
def _no_sync_of_a_group(patch: Patch) -> None:
    patch.setattr(Partition, "_make_durable", lambda self: self._note_durable(self._end))


@bug("a new segment is neither synced nor is its name", "log_states")
def _new_segment_unsynced(patch: Patch) -> None:
    patch.setattr(partition, "create_segment", _unsynced(segment.create_segment))


class _Equal:
    def __ne__(self, other: object) -> bool:
        return False


@bug("checksums of frames are not compared", "log_states")
def _no_checksum(patch: Patch) -> None:
    patch.setattr(segment, "crc32c", lambda *_: _Equal())


@bug("a frame says that it is durable itself", "log_states")
def _durable_through_ahead(patch: Patch) -> None:
    made = partition.FrameHeader
    patch.setattr(partition, "FrameHeader", lambda *a: made(*a[:5], a[2] + a[3], *a[6:]))


@bug("the durable offset is published before the sync", "log_states")
def _published_early(patch: Patch) -> None:
    make_durable = Partition._make_durable

    def early(self: Any) -> None:
        self._published.publish(self._end)
        make_durable(self)

    patch.setattr(Partition, "_make_durable", early)


@bug("rows that were written are believed durable", "log_states")
def _written_is_durable(patch: Patch) -> None:
    recover = log.recover

    def believing(*args: Any, **options: Any) -> Any:
        found = recover(*args, **options)
        stop = found.written[-1].header.stop if found.written else found.durable
        return replace(found, durable=stop, written=[])

    patch.setattr(log, "recover", believing)


@bug("rows that were written are not carried on", "log_states")
def _written_is_lost(patch: Patch) -> None:
    recover = log.recover
    patch.setattr(log, "recover", lambda *a, **o: replace(recover(*a, **o), written=[]))


@bug("the offset of a group is not synced", "log_states")
def _group_unsynced(patch: Patch) -> None:
    patch.setattr(groups, "write_document", _unsynced(groups.write_document))


@bug("a failed sync of the log is tried again", "log_errors")
def _sync_again(patch: Patch) -> None:
    def again(self: Any) -> None:
        try:
            self._file.sync()
        except OSError:
            self._file._sync_failed = False
            self._file.sync()
        self._note_durable(self._end)

    patch.setattr(Partition, "_make_durable", again)


@bug("a segment is used after its sync failed", "log_errors")
def _poisoned_segment(patch: Patch) -> None:
    def kept(self: Any, failed: OSError) -> None:
        raise LogError(f"not durable: {failed}")

    patch.setattr(Partition, "_replace_segment", kept)


@bug("rows are carried twice after a failed sync", "log_errors")
def _carried_twice(patch: Patch) -> None:
    replace_segment = Partition._replace_segment

    def twice(self: Any, failed: OSError) -> None:
        shift = self._end - self._pending[0][0].offset
        self._pending += [(replace(frame, offset=frame.offset + shift), body) for frame, body in self._pending]
        self._end += shift
        replace_segment(self, failed)

    patch.setattr(Partition, "_replace_segment", twice)


@bug("a full disk is passed over", "log_errors")
def _full_disk_swallowed(patch: Patch) -> None:
    append_frames = partition.append_frames

    def swallowing(file: Any, new: Any, tail: Any) -> Any:
        try:
            return append_frames(file, new, tail)
        except OSError:
            return tail

    patch.setattr(partition, "append_frames", swallowing)


@bug("retention does not ask the groups", "log_retention")
def _no_groups(patch: Patch) -> None:
    patch.setattr(Groups, "lowest", lambda self, number: None)


@bug("retention waits for the first group alone", "log_retention")
def _highest_group(patch: Patch) -> None:
    patch.setattr(Groups, "lowest", Groups.highest)


@bug("segments go before the floor is durable", "log_retention")
def _floor_unsynced(patch: Patch) -> None:
    patch.setattr(retention, "write_document", _unsynced(retention.write_document))


# The state directory.


@bug("a COMMIT is acknowledged before its sync", "state_states")
def _commit_unsynced(patch: Patch) -> None:
    write = StateDirectory._write

    def unsynced(self: Any, record: Any) -> None:
        sync, self._file.sync = self._file.sync, lambda: None
        file = self._file
        write(self, record)
        file.sync = sync

    patch.setattr(StateDirectory, "_write", unsynced)


@bug("a COMMIT is believed to be FINAL", "state_states")
def _final_assumed(patch: Patch) -> None:
    read = store._read_history
    patch.setattr(store, "_read_history", lambda *a: replace(read(*a), finished=True))


@bug("epochs are used again", "state_states")
def _epoch_reset(patch: Patch) -> None:
    after = property(lambda self: self.last_commit.epoch + 1 if self.last_commit is not None else 1)
    patch.setattr(History, "next_epoch", after)


@bug("the same term begins again", "state_states")
def _term_again(patch: Patch) -> None:
    drawn = nature.random_id
    patch.setattr(store, "random_id", lambda bits=128: "0" * 16 if bits == store.TERM_BITS else drawn(bits))


@bug("a torn COMMIT is called damage", "state_states")
def _torn_is_damage(patch: Patch) -> None:
    def judged(data: bytes, tail: Any, birth: int, reason: str) -> Any:
        return manifest.Problem(manifest.Damage.CORRUPT, tail.size, reason)

    patch.setattr(manifest, "_judge", judged)


@bug("a failed sync of a COMMIT is tried again", "state_errors")
def _commit_sync_again(patch: Patch) -> None:
    write = StateDirectory._write

    def again(self: Any, record: Any) -> None:
        file = self._file
        sync = type(file).sync

        def twice() -> None:
            try:
                sync(file)
            except OSError:
                file._sync_failed = False
                sync(file)

        file.sync = twice
        write(self, record)

    patch.setattr(StateDirectory, "_write", again)


@bug("a lost lock is not noticed", "two_owners")
def _lock_unchecked(patch: Patch) -> None:
    begin = StateDirectory.__init__

    def unchecked(self: Any, storage: Any, path: str, lock: Any, *rest: Any) -> None:
        lock.check = lambda: None
        begin(self, storage, path, lock, *rest)

    patch.setattr(StateDirectory, "__init__", unchecked)


# Windows of dedup.


@bug("the Bloom filter is trusted", "strange_keys")
def _filter_trusted(patch: Patch) -> None:
    find = SealedRun.find

    def trusting(self: Any, ids: bytes) -> Any:
        positions = find(self, ids)
        positions[positions == NOWHERE] = self.stop - 1
        return positions

    patch.setattr(SealedRun, "find", trusting)


@bug("a window forgets too early", "windows")
def _forgets_early(patch: Patch) -> None:
    begin = KeyWindow.__init__

    def short(self: Any, *args: Any, within: Any = None, **options: Any) -> None:
        begin(self, *args, within=None if within is None else within // 2, **options)

    patch.setattr(KeyWindow, "__init__", short)


@bug("sealed runs are not restored", "windows")
def _runs_not_restored(patch: Patch) -> None:
    patch.setattr(IdRuns, "restore", lambda self, states, window, *, durable=True: None)


@bug("the log of ids is cut too early", "windows")
def _ids_cut_early(patch: Patch) -> None:
    drop = IdLog.drop_below
    patch.setattr(IdLog, "drop_below", lambda self, position: drop(self, position + 1000))


@bug("files go that a snapshot names", "windows")
def _release_too_much(patch: Patch) -> None:
    release = IdRuns.release

    def more(self: Any, states: Any) -> None:
        states = list(states)
        self._garbage.update(state["file"] for state in states)
        release(self, [])

    patch.setattr(IdRuns, "release", more)


# Whole pipelines.


@bug("the state of dedup is missing in the COMMIT", "into_parquet")
def _no_state(patch: Patch) -> None:
    snapshotted = Coordinator.snapshotted

    def without(self: Any, epoch: int, stage: str, number: int, state: Any, counters: Any) -> None:
        snapshotted(self, epoch, stage, number, None, counters)

    patch.setattr(Coordinator, "snapshotted", without)


@bug("the state of dedup is that of the barrier before", "into_parquet")
def _old_state(patch: Patch) -> None:
    snapshotted = Coordinator.snapshotted

    def old(self: Any, epoch: int, stage: str, number: int, state: Any, counters: Any) -> None:
        before = self.__dict__.setdefault("before", {})
        given, before[stage, number] = before.get((stage, number), state), state
        snapshotted(self, epoch, stage, number, given, counters)

    patch.setattr(Coordinator, "snapshotted", old)


@bug("a COMMIT has the offsets of the one before", "without_dedup")
def _old_offsets(patch: Patch) -> None:
    cut_at = Coordinator.cut_at

    def old(self: Any, epoch: int, offsets: Any, counters: Any) -> None:
        given, self.__dict__["before_offsets"] = self.__dict__.get("before_offsets", offsets), offsets
        cut_at(self, epoch, given, counters)

    patch.setattr(Coordinator, "cut_at", old)


@bug("a barrier overtakes rows", "into_arrow_ipc")
def _barrier_overtakes(patch: Patch) -> None:
    async def run(self: Any, receive: Any, send: Any, offsets: Any) -> None:
        held, rows = None, 0
        self._offsets = dict(offsets)
        async with send:
            async for item in receive:
                if isinstance(item, Barrier):
                    self._coordinator.cut_at(item.epoch, dict(self._offsets), {"rows_in": rows})
                    rows = 0
                    send.send_control(item)
                    continue
                self._offsets[item.source] = item.offset
                rows += item.batch.row_count
                if held is not None:
                    await send.send(held, rows=held.row_count, size_bytes=held.size_bytes)
                held = self._arranged(item.batch)
            if held is not None:
                await send.send(held, rows=held.row_count, size_bytes=held.size_bytes)

    patch.setattr(Intake, "run", run)


@bug("the thread that publishes is abandoned", "into_log")
def _abandoned(patch: Patch) -> None:
    publish = Coordinator._publish

    async def hurried(self: Any, *args: Any) -> None:
        with trio.move_on_after(0):
            await publish(self, *args)

    patch.setattr(Coordinator, "_publish", hurried)


@bug("FINAL is written before the rows are published", "into_parquet")
def _final_first(patch: Patch) -> None:
    publish = Coordinator._publish

    async def late(self: Any, epoch: int, handles: Any) -> None:
        state = self._state
        state.append_final(epoch)
        state.append_final = lambda epoch: state.__dict__.pop("append_final")
        await publish(self, epoch, handles)

    patch.setattr(Coordinator, "_publish", late)


@bug("rows of a batch are written backwards", "into_log")
def _backwards(patch: Patch) -> None:
    def write(writer: Any, batch: Any) -> None:
        rows = batch.gathered().rows
        writer.write(rows.take(pa.array(range(rows.num_rows - 1, -1, -1))), origin=batch.origin)

    patch.setattr(SinkLane, "_write_rows", staticmethod(write))


@bug("names of staged files are not synced", "into_parquet")
def _staging_unsynced(patch: Patch) -> None:
    patch.setattr(OutputDirectory, "sync_staging", lambda self: None)


@bug("staged segments are not synced", "into_log")
def _staged_segment_unsynced(patch: Patch) -> None:
    finish = staging.StagedSegment.finish

    def unsynced(self: Any) -> None:
        self._file.sync = lambda: None
        finish(self)

    patch.setattr(staging.StagedSegment, "finish", unsynced)


@bug("a token is used again", "into_arrow_ipc")
def _token_again(patch: Patch) -> None:
    patch.setattr(StateDirectory, "token", lambda self, epoch, sink: Token(self.incarnation, 1, self.term, sink))


def _left_out_syncs() -> list[str]:
    [mark] = test_file_crashes.test_a_sync_that_is_left_out_is_found.pytestmark  # type: ignore[attr-defined]
    return [f"no sync of {path}" for _, path in mark.args[1]]


ELSEWHERE: dict[str, list[str]] = {
    "test_log_crashes": list(test_log_crashes.MUTANTS),
    "test_state_crashes": list(test_state_crashes.MUTANTS),
    "test_file_crashes": _left_out_syncs(),
    "test_simulate": list(test_simulate.MUTANTS),
}
"""By test file the bugs that it plants and finds itself, all of them in every run."""

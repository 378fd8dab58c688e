"""A log of ids on a simulated disk: an owner that notes the snapshots it took, and what each must give back."""

from dataclasses import dataclass, field

from engine.stages.id_log import IdLog, SegmentState
from engine.storage import Storage

DIRECTORY = "/ids"
SEED = bytes(range(16))
IDS = 40
"""Ids an append; two appends and a half fill a segment."""

WINDOW = 5 * IDS


@dataclass(frozen=True)
class Snapshot:
    """What was durable when the disk had changed so often: the ids of the positions [start, stop)."""

    changes: int = 0
    states: list[SegmentState] = field(default_factory=list)
    start: int = 0
    stop: int = 0

    def check(self, storage: Storage) -> None:
        """All of its ids are read back."""
        log = opened(storage)
        found = list(log.restore(self.states, self.start))
        log.close()
        assert b"".join(ids for _, ids in found) == b"".join(ids_of(at) for at in range(self.start, self.stop, IDS))


def opened(storage: Storage) -> IdLog:
    return IdLog(storage, DIRECTORY, SEED, segment_bytes=1500)


def ids_of(first: int) -> bytes:
    return b"".join(position.to_bytes(16, "big") for position in range(first, first + IDS))


def run(storage: Storage, snapshots: list[Snapshot], appends: int) -> None:
    """One attempt: restore the last snapshot, then append; each second append is followed by a snapshot."""
    last = snapshots[-1]
    storage.make_directory(DIRECTORY)
    for name in storage.list(DIRECTORY):
        if name not in {state["file"] for state in last.states}:
            storage.unlink(f"{DIRECTORY}/{name}")
    log = opened(storage)
    for _ in log.restore(last.states, last.start):
        pass
    position = last.stop
    for number in range(appends):
        log.append(position, ids_of(position))
        position += IDS
        if number % 2:
            start = max(0, position - WINDOW)
            log.drop_below(start)
            states = log.sync()
            snapshots.append(Snapshot(getattr(storage, "changes", 0), states, start, position))
            log.release(states)
    log.close()

"""A durable log on a simulated disk: an owner that notes what it was promised, and what must be there then.

Two oracles: ``check_reopened`` opens the log for writing, twice, and reads it; ``ReadBack`` asks what recovery says and
reads every row that it leaves, changes nothing, and remembers its answers.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa
from crash.remembered import Remembered

from engine import Log
from engine.errors import LogError
from engine.log.body import decode_body
from engine.log.durable import durable_identity, read_durable
from engine.log.groups import Groups
from engine.log.reader import PartitionReader
from engine.log.recovery import durable_offset, recover
from engine.log.retention import Retention
from engine.log.segment import segment_names
from engine.testing.crash_states import CrashState
from engine.testing.storage import SimulatedStorage

PATH = "/srv/log"
PARTITIONS = 2
GROUP = "readers"
FAILURES = (LogError, OSError)


@dataclass
class Acknowledged:
    """Offsets that each partition was asked for, and acknowledged, by the count of changes of the disk: behind its
    rows, and of its group. ``first`` are those of the oldest row, from the call on that may have moved it.
    """

    partitions: int = PARTITIONS
    asked: list[tuple[int, int, int]] = field(default_factory=list)
    granted: list[tuple[int, int, int]] = field(default_factory=list)
    taking: list[tuple[int, int, int]] = field(default_factory=list)
    taken: list[tuple[int, int, int]] = field(default_factory=list)
    first: list[tuple[int, int, int]] = field(default_factory=list)

    def check_rows(self, partition: int, changes: int, start: int, stop: int) -> None:
        """Whether the rows [start, stop) may be there, and no others."""
        assert start <= _highest(self.first, partition, changes)
        assert _highest(self.granted, partition, changes) <= stop <= _highest(self.asked, partition, changes)

    def check_group(self, partition: int, changes: int, offset: int) -> None:
        """Whether the group may stand there."""
        assert _highest(self.taken, partition, changes) <= offset <= _highest(self.taking, partition, changes)


def _highest(noted: list[tuple[int, int, int]], partition: int, changes: int) -> int:
    return max((offset for at, number, offset in noted if number == partition and at <= changes), default=0)


def opened(storage: SimulatedStorage) -> Log:
    return Log(PATH, partitions=PARTITIONS, segment_bytes=700, storage=storage)


def rows(partition: int, start: int, count: int) -> pa.RecordBatch:
    values = range(start, start + count)
    return pa.record_batch({"n": pa.array(values, pa.int64()), "part": pa.array([partition] * count, pa.int8())})


def append(log: Log, storage: SimulatedStorage, told: Acknowledged, batch: pa.RecordBatch, partition: int = 0) -> None:
    """Append rows and note it."""
    begun, stop = storage.changes, log.end(partition=partition) + batch.num_rows
    told.asked.append((begun, partition, stop))
    log.append(batch, partition=partition)
    told.granted.append((storage.changes, partition, stop))


def take(log: Log, storage: SimulatedStorage, told: Acknowledged, offset: int, partition: int = 0) -> None:
    """Commit an offset of the group and note it."""
    told.taking.append((storage.changes, partition, offset))
    log.groups[GROUP].commit(offset, partition=partition)
    told.taken.append((storage.changes, partition, offset))


def abandon(log: Log) -> None:
    """Leave a log as a process that is killed does."""
    for writer in log._writers:
        if writer._file is not None:
            writer._file.close()
    assert log._lock is not None
    log._lock.release()


def attempt(storage: SimulatedStorage, told: Acknowledged, appends: int, *, close: bool = True) -> None:
    log = opened(storage)
    for number in range(appends):
        partition, count = number % 2, 1 + 7 * (number % 3)
        start = log.end(partition=partition)
        append(log, storage, told, rows(partition, start, count), partition)
        if number == 3:
            take(log, storage, told, start, partition)
    if close:
        log.close()
    else:
        abandon(log)


def recorded(storage: SimulatedStorage) -> Acknowledged:
    told = Acknowledged()
    attempt(storage, told, 9)
    attempt(storage, told, 3, close=False)
    attempt(storage, told, 4)
    return told


def found(log: Log, partition: int) -> list[int]:
    start = log.start(partition=partition)
    return [n for batch in log.read(start, partition=partition) for n in batch.column("n").to_pylist()]


def check_reopened(storage: SimulatedStorage, told: Acknowledged, changes: int) -> None:
    """The log opens for writing with what was promised, twice."""
    before = None
    for _ in range(2):
        with Log(PATH, partitions=told.partitions, segment_bytes=700, storage=storage) as log:
            everything = [
                (log.start(partition=partition), found(log, partition)) for partition in range(told.partitions)
            ]
            for partition, (start, values) in enumerate(everything):
                assert values == list(range(start, start + len(values)))
                told.check_rows(partition, changes, start, start + len(values))
            offsets = log.groups[GROUP].offsets()
            for partition, offset in enumerate(offsets):
                told.check_group(partition, changes, offset)
        assert before is None or (everything, offsets) == before
        before = everything, offsets


def check_appended(storage: SimulatedStorage) -> None:
    """The log takes another append, and has it behind what it had."""
    with Log(PATH, storage=storage) as log:
        before, stop = found(log, 0), log.end()
        after = rows(0, stop, 2)
        log.append(after if log.schema is None else after.select(log.schema.names).cast(log.schema))
    with Log(PATH, write=False, storage=storage) as log:
        assert found(log, 0) == [*before, stop, stop + 1]


class ReadBack:
    """What recovery and a reader find, for every state; nothing is written. It depends on the disk alone: ``told`` may
    become that of another run.
    """

    def __init__(self, told: Acknowledged) -> None:
        self.told = told
        self._found: dict[bytes, list[tuple[int, int, int]]] = {}
        self._directories = [f"{PATH}/partition-{number:05}" for number in range(told.partitions)]
        only_log = Remembered(_identity, within=PATH, opens=lambda path: path.endswith("/LOG"), failures=FAILURES)
        self._identity = only_log
        self._offsets = Remembered(_offsets, within=f"{PATH}/groups", failures=FAILURES)
        self._published = [
            Remembered(read_durable, within=f"{directory}/durable", failures=FAILURES)
            for directory in self._directories
        ]
        self._rows = [
            Remembered(_rows, within=directory, opens=_is_of_the_log, failures=FAILURES)
            for directory in self._directories
        ]

    @property
    def asked(self) -> int:
        """How often something had to be read."""
        return sum(each.asked for each in (self._identity, self._offsets, *self._published, *self._rows))

    def check(self, state: CrashState, changes: int) -> None:
        """What was promised by so many changes is there. Raises AssertionError, LogError, OSError."""
        if state.digest not in self._found:
            self._found[state.digest] = list(self._partitions_of(state))
        for partition, (start, stop, offset) in enumerate(self._found[state.digest]):
            self.told.check_rows(partition, changes, start, stop)
            self.told.check_group(partition, changes, offset)

    def _partitions_of(self, state: CrashState) -> Iterator[tuple[int, int, int]]:
        """Of each partition the first row, the end of the last, and where the group stands."""
        digests = state.digests()
        identity = self._identity.answer(state, digests)
        if identity is None:
            yield from [(0, 0, 0)] * self.told.partitions
            return
        offsets = self._offsets.answer(state, digests, self.told.partitions)
        for partition, directory in enumerate(self._directories):
            proof = durable_identity(identity, partition)
            published = self._published[partition].answer(state, digests, directory, proof)
            given = directory, identity, partition, published, offsets[partition]
            yield *self._rows[partition].answer(state, digests, *given), offsets[partition]


def _is_of_the_log(path: str) -> bool:
    """Whether a reader of the rows opens such a file of a partition."""
    return path.endswith((".seg", "/floor"))


def _identity(storage: SimulatedStorage) -> str | None:
    """The id of the log; None where there is none yet, and one can be made."""
    if not storage.exists(f"{PATH}/LOG"):
        names = storage.list(PATH) if storage.exists(PATH) else []
        rooms = [f"{PATH}/{name}" for name in names if name.startswith("partition-")]
        assert not any(segment_names(storage.list(room)) for room in rooms)
        return None
    with Log(PATH, write=False, storage=storage) as log:
        return log.id


def _offsets(storage: SimulatedStorage, partitions: int) -> tuple[int, ...]:
    directory = f"{PATH}/groups"
    return Groups(storage, directory, partitions, lambda partition: 0)[GROUP].offsets()


def _rows(
    storage: SimulatedStorage, directory: str, identity: str, partition: int, published: int, offset: int
) -> tuple[int, int]:
    """[start, stop) of what whoever opens the log next finds in it. A reader is told of as much, or of what the frame
    proves besides in which the tail is torn.
    """
    floor = Retention.floor(storage, directory)
    known = {"log": identity, "partition": partition, "floor": floor, "published": published, "committed": offset}
    recovered = recover(storage, directory, **known)
    told = durable_offset(storage, directory, **known)
    assert told == recovered.durable or (recovered.torn is not None and told > recovered.durable)
    if not recovered.segments:
        return 0, 0
    start = recovered.segments[0].header.base
    batches = [read.rows for read in PartitionReader(storage, directory, identity).read(start, recovered.durable)]
    skipped = recovered.durable
    for frame in recovered.written:
        batches.append(decode_body(frame.body).slice(max(0, skipped - frame.header.offset)))
        skipped = frame.header.stop
    values = [n for batch in batches for n in batch.column("n").to_pylist()]
    assert values == list(range(start, start + len(values)))
    assert told <= start + len(values)
    return start, start + len(values)

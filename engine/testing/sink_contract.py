"""``check_sink``: the laws of ``engine.sink`` tried on any sink, driven as a run drives it.

It runs attempt after attempt against one target. Each attempt takes a new instance of the sink, as another process
would, opens it with the token of the last commit, finishes that commit, discards what came later, and goes on with
epochs that no attempt used before. Handles go through JSON, as in a COMMIT.

Laws of this check
    - Every row is different from all others, so that what a reader sees tells which epochs are published.
    - A commit is interrupted at up to ``interruptions`` places, spread over all functions that it calls: there an
      exception leaves it that is no ``Exception``, and the same handles are committed by another instance.
    - A sink that keeps rows in the state directory has one, as in a run: the same for all attempts.
"""

import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import closing, contextmanager, suppress
from functools import partial
from itertools import pairwise

import pyarrow as pa

from engine.batch import Origin, zero_rows
from engine.errors import SinkError
from engine.progress import Token
from engine.sink import Guarantee, Handle, Holding, OutputFiles, Sink, StagesInState, Writer
from engine.testing.interruption import count_calls, interrupt

__all__ = ["check_sink"]

_INCARNATION, _OTHER = "0123456789abcdef" * 2, "fedcba9876543210" * 2
_MEMORY_BYTES = 8 << 20

_NAME = "its name is stable"
_OPEN = "open takes an empty target, and one that its own incarnation left, wherever that ended"
_INVISIBLE = "nothing is visible before commit"
_COMMIT = "commit makes the prepared rows visible, all of them and no others"
_AGAIN = "commit is idempotent"
_INTERRUPTED = "a commit that was interrupted is completed by its repetition"
_HANDLE = "a handle is JSON and alone suffices to publish, in another process"
_DISCARD = "discard_after removes what later epochs staged"
_KEEP = "discard_after removes nothing of earlier epochs, and nothing that was published"
_ABORT = "abort is harmless, after prepare too and when repeated"
_EMPTY = "an epoch without rows publishes nothing"
_ORDER = "the rows of a partition keep their order"
_OWNER = "a target that belongs to another incarnation is refused, and stays as it is"
_AHEAD = "a target that is ahead of the last commit is refused, and stays as it is"


def _numbered_rows(numbers: range) -> pa.RecordBatch:
    """Rows of a number and a text, both different in every row."""
    return pa.RecordBatch.from_pydict({"number": list(numbers), "text": [f"row {number}" for number in numbers]})


def check_sink(
    make_sink: Callable[[], Sink],
    *,
    read_rows: Callable[[], pa.Table],
    make_rows: Callable[[range], pa.RecordBatch] = _numbered_rows,
    staged: Callable[[], Sized] | None = None,
    ordered: bool = True,
    shared: bool = False,
    interruptions: int = 20,
) -> None:
    """Prove the laws of ``engine.sink`` on a sink. Raises AssertionError that names the broken law and what was seen.

    ``make_sink`` makes a new instance for one target, always the same one, which must be empty in the beginning.
    ``read_rows`` gives what a reader of the target sees now, as a table without rows where that is nothing; columns
    beyond those of the rows do not count. ``make_rows`` makes a row for each number, different from all others, where
    the sink does not take ``number`` int64 and ``text`` utf8. ``staged`` gives what lies staged, such as names of
    files; without it nobody sees whether ``discard_after`` removes anything. ``ordered``: whether ``read_rows`` gives
    the rows of a partition in their order. ``shared``: whether the target may hold rows of other incarnations, such as
    a table to which several pipelines append; else one that does must be refused. ``interruptions``: in how many places
    a commit is interrupted; 0 for a sink that others hear of.

    A sink that ``StagesInState`` is given a directory, which is removed in the end, unless ``make_sink`` has set one.
    Of a sink that promises at least once, only that is asked: every committed row is there, at least once, in order.
    """
    if interruptions < 0:
        raise ValueError(f"interruptions is {interruptions}; it must be at least 0")
    with tempfile.TemporaryDirectory(prefix="engine-", ignore_cleanup_errors=True) as state:
        trial = _Trial(make_sink, read_rows, make_rows, staged, ordered, os.path.join(state, "sink"))
        with closing(trial):
            _check_all(trial, shared, interruptions)


def _check_all(trial: "_Trial", shared: bool, interruptions: int) -> None:
    trial.begin()
    exactly_once = trial.guarantee is Guarantee.EXACTLY_ONCE
    _check_commits(trial)
    _check_handles(trial)
    _check_empty_epochs(trial)
    _check_aborts(trial)
    _check_overlapping_epochs(trial)
    _check_discard(trial)
    _check_recovery(trial)
    _check_interruptions(trial, interruptions)
    if exactly_once and not shared:
        _check_other_incarnation(trial)
    if exactly_once:
        _check_ahead(trial)


class _Trial:
    """One target, what was committed to it, and the attempt that is under way."""

    def __init__(
        self,
        make_sink: Callable[[], Sink],
        read_rows: Callable[[], pa.Table],
        make_rows: Callable[[range], pa.RecordBatch],
        staged: Callable[[], Sized] | None,
        ordered: bool,
        directory: str,
    ) -> None:
        self._make_sink = make_sink
        self._directory = directory
        self._holding: Holding | None = None
        self.staged = staged
        self._read_rows = read_rows
        self._make_rows = make_rows
        self._ordered = ordered
        sink = self.make_sink()
        self.name = sink.name
        self.guarantee = sink.guarantee
        self.schema = make_rows(range(1)).schema
        self.partitions = 3
        self.epoch = 0
        self._attempts = 0
        self._numbers = 0
        self._last = (0, "")
        self._expected: list[list[str]] = [[] for _ in range(self.partitions)]
        self._written: set[str] = set()

    # Attempts.

    def make_sink(self) -> Sink:
        """A new instance; the one before lets go of what it holds, as it does when its process ends."""
        self.close()
        sink = self._make_sink()
        self._holding = sink if isinstance(sink, Holding) else None
        if isinstance(sink, OutputFiles | StagesInState):
            sink.pipeline = "check_sink"
        if isinstance(sink, StagesInState) and sink.directory is None:
            sink.directory = self._directory
        return sink

    def close(self) -> None:
        """The last instance lets go."""
        holding, self._holding = self._holding, None
        if holding is not None:
            holding.close()

    def begin(self) -> None:
        """See that the target is empty and stays so while a sink is made and opened."""
        rows = self._read_rows().num_rows
        if rows:
            raise AssertionError(f"check_sink needs an empty target; {rows:,} rows are visible in that of {self.name}")
        self.attempt()
        self.see(_INVISIBLE, "after open")

    def attempt(self, interrupted: str = "") -> Sink:
        """A new instance, opened as a new process opens it; its epochs are new ones. ``interrupted``: where the last
        commit was.
        """
        self._attempts += 1
        self.epoch += 3
        sink = self.make_sink()
        if sink.name != self.name or not isinstance(self.name, str):
            raise self.broken(_NAME, f"one instance is called {self.name!r}, another one {sink.name!r}")
        after = f"after the commit of epoch {self._last[0]}{interrupted}" if self._last[0] else "of an empty target"
        with self.trying(_OPEN, f"open {after}"):
            self.open(sink, self.last_token())
        return sink

    def open(self, sink: Sink, token: Token) -> None:
        """Open a sink for a run whose last commit is ``token``."""
        sink.open(self.schema, token=token, partitions=self.partitions, memory_bytes=_MEMORY_BYTES)

    def last_token(self, incarnation: str = _INCARNATION) -> Token:
        """The token of the last commit."""
        epoch, term = self._last
        return Token(incarnation, epoch, term or f"{self._attempts:016x}", self.name)

    def token(self, epoch: int) -> Token:
        """The token of an epoch of this attempt."""
        return Token(_INCARNATION, epoch, f"{self._attempts:016x}", self.name)

    # Epochs.

    def write(self, writer: Writer, partition: int, counts: Sequence[int]) -> list[str]:
        """Write batches of so many rows; gives the rows as they are compared."""
        written: list[str] = []
        for count in counts:
            start, self._numbers = self._numbers, self._numbers + count
            rows = self._make_rows(range(start, start + count)) if count else zero_rows(self.schema)
            with self.trying(_COMMIT, f"write of {count} rows to partition {partition}"):
                writer.write(rows, origin=Origin("check", f"check-{partition}", start, start + count))
            written += map(repr, rows.to_pylist())
        self._written.update(written)
        return written

    def stage(self, sink: Sink, epoch: int, counts: Sequence[Sequence[int] | None]) -> "_Staged":
        """Write and prepare an epoch; ``counts`` are the sizes of batches, by partition; None: it has no writer."""
        staged = _Staged(epoch, self.token(epoch).term, [], [[] for _ in range(self.partitions)])
        for partition, sizes in enumerate(counts):
            if sizes is None:
                continue
            writer = sink.writer(partition, self.token(epoch))
            staged.rows[partition] = self.write(writer, partition, sizes)
            if partition == 0:
                self.see(_INVISIBLE, f"after rows of epoch {epoch} were written")
            self.prepare(writer, staged, _HANDLE if any(sizes) else _EMPTY)
        self.see(_INVISIBLE, f"after epoch {epoch} was prepared")
        return staged

    def prepare(self, writer: Writer, staged: "_Staged", law: str = _HANDLE) -> None:
        """Prepare one partition, and take its handle through JSON."""
        with self.trying(law, f"prepare of epoch {staged.epoch}"):
            handle = writer.prepare()
        if handle is None:
            return
        try:
            staged.handles.append(json.loads(json.dumps(handle, allow_nan=False)))
        except (TypeError, ValueError) as error:
            raise self.broken(_HANDLE, f"epoch {staged.epoch} gave what JSON cannot hold: {error}") from error

    def record(self, staged: "_Staged") -> None:
        """The COMMIT of the epoch is durable: from now on its rows belong to the target."""
        self._last = (staged.epoch, staged.term)
        self.epoch = max(self.epoch, staged.epoch)
        for expected, rows in zip(self._expected, staged.rows, strict=True):
            expected += rows

    def commit(self, sink: Sink, staged: "_Staged", law: str, when: str) -> None:
        """Publish and look."""
        with self.trying(law, f"commit of epoch {staged.epoch} {when}"):
            sink.commit(json.loads(json.dumps(staged.handles)))
        self.see(law, f"after the commit of epoch {staged.epoch} {when}")

    def discard(self, sink: Sink, law: str) -> None:
        """Discard what came after the last commit, and look."""
        with self.trying(law, f"discard_after epoch {self._last[0]}"):
            sink.discard_after(self.last_token())
        self.see(law, f"after discard_after epoch {self._last[0]}")

    # What is seen.

    def see(self, law: str, when: str) -> None:
        """Compare what a reader sees with what was committed."""
        table = self._read_rows()
        if table.num_rows or any(self._expected):
            missing = [name for name in self.schema.names if name not in table.column_names]
            if missing:
                raise self.broken(law, f"{when} readers find no column {missing[0]!r}, only {table.column_names}")
            table = table.select(self.schema.names)
        seen = [repr(row) for row in table.to_pylist()]
        found, expected = Counter(seen), Counter(row for rows in self._expected for row in rows)
        if lost := expected - found:
            raise self.broken(law, f"{when} {_told(lost)} missing")
        extra = found - expected
        if self.guarantee is not Guarantee.EXACTLY_ONCE:
            extra = Counter(row for row in extra if row not in self._written)
        if extra:
            raise self.broken(law, f"{when} {_told(extra)} visible too often, or too early")
        if self._ordered:
            self._see_order(seen, when)

    def _see_order(self, seen: list[str], when: str) -> None:
        place: dict[str, int] = {}
        for at, row in enumerate(seen):
            place.setdefault(row, at)
        for partition, rows in enumerate(self._expected):
            for before, behind in pairwise(rows):
                if place[before] > place[behind]:
                    what = f"{when} readers of partition {partition} find {behind} before {before}"
                    raise self.broken(_ORDER, what)

    @contextmanager
    def trying(self, law: str, what: str) -> Iterator[None]:
        """What fails here breaks the law."""
        try:
            yield
        except AssertionError:
            raise
        except Exception as error:
            raise self.broken(law, f"{what} raised {type(error).__name__}: {error}") from error

    def broken(self, law: str, what: str) -> AssertionError:
        """The error that names the law."""
        return AssertionError(f"{self.name} breaks the law that {law}:\n  {what}.")


class _Staged:
    """An epoch that is prepared: all that its COMMIT would hold."""

    def __init__(self, epoch: int, term: str, handles: list[Handle], rows: list[list[str]]) -> None:
        self.epoch = epoch
        self.term = term
        self.handles = handles
        self.rows = rows


def _told(rows: Iterable[str]) -> str:
    found = sorted(rows)
    return f"{found[0]} is" if len(found) == 1 else f"{len(found):,} rows, {found[0]} among them, are"


def _check_commits(trial: _Trial) -> None:
    """Several epochs of one process: all partitions, several batches each, then fewer; each commit twice."""
    sink = trial.attempt()
    several: list[list[list[int] | None]] = [[[4, 3], [5], [1, 1, 2]], [[3], None, [2]], [None, [6], None]]
    for counts in several:
        staged = trial.stage(sink, trial.epoch, counts)
        trial.record(staged)
        trial.commit(sink, staged, _COMMIT, "in the process that prepared it")
        trial.commit(sink, staged, _AGAIN, "for the second time")
        trial.epoch += 1


def _check_handles(trial: _Trial) -> None:
    """A process ends behind its COMMIT: another one publishes, and a third one does so again."""
    sink = trial.attempt()
    staged = trial.stage(sink, trial.epoch, [[4], [2], None])
    trial.record(staged)
    again = trial.attempt()
    trial.commit(again, staged, _HANDLE, "in another process than the one that prepared it")
    trial.commit(again, staged, _AGAIN, "for the second time, in another process")
    trial.commit(trial.attempt(), staged, _AGAIN, "for the third time, in a third process")


def _check_empty_epochs(trial: _Trial) -> None:
    """No writer at all, writers that were given nothing, and writers that were given batches without rows."""
    sink = trial.attempt()
    empty: list[list[list[int]]] = [[], [[], []], [[0], [0, 0], [0]], [[0, 2, 0], [], []]]
    for counts in empty:
        staged = trial.stage(sink, trial.epoch, counts)
        trial.record(staged)
        trial.commit(sink, staged, _EMPTY, "that is empty, or nearly so")
        trial.commit(sink, staged, _EMPTY, "that is empty, or nearly so, for the second time")
        trial.epoch += 1
    trial.discard(trial.attempt(), _EMPTY)


def _check_aborts(trial: _Trial) -> None:
    """Abort a writer with rows, one without, and one that is prepared; only the last one's rows count."""
    sink = trial.attempt()
    given_up = sink.writer(0, trial.token(trial.epoch))
    trial.write(given_up, 0, [3])
    untouched = sink.writer(1, trial.token(trial.epoch))
    with trial.trying(_ABORT, "abort"):
        for writer in (given_up, given_up, untouched, untouched):
            writer.abort()
    trial.see(_ABORT, "after the abort of two writers")
    staged = _Staged(trial.epoch, trial.token(trial.epoch).term, [], [[] for _ in range(trial.partitions)])
    writer = sink.writer(2, trial.token(trial.epoch))
    staged.rows[2] = trial.write(writer, 2, [2, 2])
    trial.prepare(writer, staged)
    with trial.trying(_ABORT, "abort after prepare"):
        writer.abort()
        writer.abort()
    trial.record(staged)
    trial.commit(sink, staged, _ABORT, "whose writer was aborted after prepare")


def _check_overlapping_epochs(trial: _Trial) -> None:
    """While one epoch is prepared and published, the next one is being written."""
    sink = trial.attempt()
    first = trial.stage(sink, trial.epoch, [[2], [3], None])
    second = _Staged(trial.epoch + 1, trial.token(trial.epoch + 1).term, [], [[] for _ in range(trial.partitions)])
    writer = sink.writer(0, trial.token(second.epoch))
    second.rows[0] = trial.write(writer, 0, [2])
    trial.record(first)
    trial.commit(sink, first, _COMMIT, "while the next one is being written")
    second.rows[0] += trial.write(writer, 0, [3])
    trial.prepare(writer, second)
    trial.see(_INVISIBLE, f"after epoch {second.epoch} was prepared")
    trial.record(second)
    trial.commit(sink, second, _COMMIT, "that was begun before the commit of the one before")


def _check_discard(trial: _Trial) -> None:
    """A process ends with one epoch staged and another being written: the next one discards both."""
    sink = trial.attempt()
    trial.stage(sink, trial.epoch, [[2], [2], [1]])
    writer = sink.writer(0, trial.token(trial.epoch + 1))
    trial.write(writer, 0, [2])
    again = trial.attempt()
    trial.discard(again, _KEEP)
    if trial.staged is not None and (left := trial.staged()):
        raise trial.broken(_DISCARD, f"after discard_after still staged: {left!r}")
    trial.discard(again, _KEEP)
    staged = trial.stage(again, trial.epoch, [[3], [1], [2]])
    trial.record(staged)
    trial.commit(again, staged, _DISCARD, "behind a discarded one")
    trial.discard(trial.attempt(), _KEEP)


def _check_recovery(trial: _Trial) -> None:
    """A process ends between its COMMIT and the publication, with the next epoch staged: another one finishes."""
    sink = trial.attempt()
    staged = trial.stage(sink, trial.epoch, [[2, 2], None, [3]])
    trial.stage(sink, trial.epoch + 1, [[1], [1], None])
    trial.record(staged)
    again = trial.attempt()
    with suppress(SinkError):  # to refuse is right as well: what is committed comes first
        again.discard_after(trial.last_token())
    trial.commit(again, staged, _KEEP, "that was staged when epochs after it were discarded")
    trial.discard(again, _KEEP)


def _check_interruptions(trial: _Trial, most: int) -> None:
    """Interrupt a commit in its first call, in its last one, and in between."""
    counts = [[2], [1, 1], [1]]
    if not most:
        return
    sink = trial.attempt()
    staged = trial.stage(sink, trial.epoch, counts)
    trial.record(staged)
    calls = count_calls(partial(sink.commit, staged.handles))
    trial.see(_COMMIT, f"after the commit of epoch {staged.epoch}")
    places = sorted({number * (calls - 1) // max(1, most - 1) for number in range(most)}) if calls else []
    for place in places:
        sink = trial.attempt()
        staged = trial.stage(sink, trial.epoch, counts)
        trial.record(staged)
        with trial.trying(_INTERRUPTED, f"commit of epoch {staged.epoch}"):
            interrupt(partial(sink.commit, staged.handles), place)
        again = trial.attempt(f", interrupted at its call {place} of {calls},")
        trial.commit(again, staged, _INTERRUPTED, f"that was interrupted at its call {place} of {calls}")
        trial.discard(again, _INTERRUPTED)


def _check_other_incarnation(trial: _Trial) -> None:
    """A run with another state directory meets the target."""
    _check_refused(trial, _OWNER, trial.last_token(_OTHER), "an open by another incarnation")


def _check_ahead(trial: _Trial) -> None:
    """The state directory comes from an older backup."""
    _check_refused(trial, _AHEAD, trial.token(1), "an open with epoch 1 as its last commit")


def _check_refused(trial: _Trial, law: str, token: Token, what: str) -> None:
    sink = trial.make_sink()
    try:
        trial.open(sink, token)
    except SinkError:
        trial.see(law, f"after {what}")
    except Exception as error:
        raise trial.broken(law, f"{what} raised {type(error).__name__} in place of SinkError: {error}") from error
    else:
        raise trial.broken(law, f"{what} was not refused")
    trial.discard(trial.attempt(), law)

"""One partition of an open log: appends in order, synced in groups, acknowledged when durable.

    append ─► frame at the end of the newest segment ─► one thread syncs for all that wait ─► published ─► acknowledged

Laws
    - ``append`` returns only when its rows are durable. Whoever finds no sync under way begins one, for all that is
      written by then; the others wait for that one, or for the next.
    - A segment belongs to one term: an opened log writes to a new one. Its base is what was durable, and whole frames
      that were only written before are its first ones: so nothing that was read from the page cache is taken for
      durable.
    - A failed sync is never retried. The segment is left, and what was not acknowledged is written from memory to a new
      one, once; where that fails too, the partition is closed to appends, and nothing of it was acknowledged.
    - A failed write appends nothing, also where it came behind other frames of the same append; the partition goes on.
    - Any thread may call.
    - Ctrl-C waits until a call has ended: no lock stays held, and no sync is taken to be under way for ever.
"""

import os
import signal
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import FrameType

from engine.errors import LogError
from engine.log.body import Body
from engine.log.durable import DurableOffset, durable_identity
from engine.log.format import Codec, FrameHeader, Kind, SegmentHeader, Tail
from engine.log.recovery import Recovered
from engine.log.segment import Segment, append_frame, create_segment, mark, open_segment, segment_name, whole_frames
from engine.nature import wall_clock
from engine.storage import File, Storage

__all__ = ["Partition"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def microseconds(moment: datetime) -> int:
    """Since 1970, UTC."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Keep Ctrl-C, which only the main thread sees, until the end."""
    before = signal.getsignal(signal.SIGINT)
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: came.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            before(*came[0])


class Partition:
    """The writer's side of a partition. ``found`` is what recovery read."""

    def __init__(
        self,
        storage: Storage,
        directory: str,
        found: Recovered,
        *,
        log: str,
        number: int,
        term: int,
        segment_bytes: int,
        sync: bool,
    ) -> None:
        self.directory = directory
        self.number = number
        self.retaining = threading.Lock()
        self.rolled = True  # retention has not looked since a segment began
        self.segments: list[Segment] = found.segments
        self._storage = storage
        self._header = SegmentHeader(log, number, 0, 0, term)
        self._segment_bytes = segment_bytes
        self._sync = sync
        self._changed = threading.Condition()
        self._syncing = False
        self._failure: Exception | None = None
        self._closed = False
        self._file: File | None = None
        self._tail = Tail(0, 0, 0, 0, 0)
        self._pending: deque[tuple[FrameHeader, Body]] = deque()  # written, not durable yet
        self._durable = self._end = found.durable
        self._time_us = found.time_us
        self._published_stop: int | None = None  # of a segment that was renamed, and its name perhaps not durable yet
        self._published = DurableOffset(storage, directory, durable_identity(log, number))
        for frame in found.written:
            self._pending.append((frame.header, Body(frame.header.rows, (frame.body,))))
            self._end = frame.header.stop
        self._published.begin(self._durable)
        if self._pending:
            with self._changed, self._explained():
                self._begin_segment()

    @property
    def durable(self) -> int:
        """The offset behind the last durable row."""
        return self._durable

    def append(self, bodies: list[Body], codec: Codec) -> int:
        """Append a frame for each body; give the offset behind them when they are durable. Raises LogError."""
        checksums = [body.checksum() for body in bodies]
        with _uninterrupted(), self._changed:
            self._check()
            if self._file is None or self._tail.position >= self._segment_bytes:
                self._settle()
                with self._explained():
                    self._begin_segment()
            with self._all_or_nothing():
                for body, checksum in zip(bodies, checksums, strict=True):
                    self._write(body, checksum, codec)
            stop = self._end
            while self._durable < stop:
                self._advance()
        return stop

    def wait_beyond(self, offset: int, timeout_s: float) -> bool:
        """Wait until a row at ``offset`` is durable, the partition is closed, or the time is up; say the first."""
        with self._changed:
            self._changed.wait_for(lambda: self._durable > offset or self._closed, timeout_s)
            return self._durable > offset

    def roll(self) -> None:
        """End the newest segment; the next append begins another. Raises LogError."""
        with _uninterrupted(), self._changed:
            self._settle()
            if self._file is not None:
                self._file.close()
                self._file = None

    def next_segment(self) -> tuple[int, int]:
        """(base, number) of a segment that would begin now. Raises LogError."""
        with self._changed:
            self._settle()
            return self._durable, self.segments[-1].header.number + 1 if self.segments else 0

    def publish(self, staged: str) -> None:
        """Make a staged segment, which begins at ``next_segment``, the newest one. Raises LogError, CorruptLog."""
        with self._changed, self._explained():
            self._check()
            self._settle()
            file, segment = open_segment(self._storage, staged, named=False)
            with file:
                stop = segment.header.base
                for frame in whole_frames(file, segment):
                    stop = frame.header.stop
            if (segment.header.base, segment.header.number) != self.next_segment():
                raise LogError(f"{staged} was staged for another place in {self.directory}")
            segment.path = os.path.join(self.directory, segment_name(segment.header))
            self._storage.rename(staged, segment.path)
            if self._file is not None:
                self._file.close()
                self._file = None
            self.segments.append(segment)
            self.rolled = True
            self._published_stop = stop
            self.finish_publishing()

    def finish_publishing(self) -> None:
        """Make the name of the segment that was published last durable; harmless where it is. Raises LogError."""
        with self._changed, self._explained():
            self._storage.sync_directory(self.directory)
            if self._published_stop is not None:
                self._end, self._published_stop = self._published_stop, None
                self._note_durable(self._end)

    def forget_oldest(self, count: int) -> None:
        """Retention removed so many segments."""
        with self._changed:
            del self.segments[:count]

    def close(self) -> None:
        """Prove by a mark that everything is durable. Harmless when repeated. Raises LogError."""
        with _uninterrupted(), self._changed:
            if self._closed:
                return
            try:
                self._settle()
                if self._file is not None and self._failure is None:
                    with self._explained():
                        self._tail = append_frame(
                            self._file, mark(self._durable, self._now_us()), Body(0, ()), self._tail
                        )
                        self._file.sync()
            finally:
                self._closed = True
                if self._file is not None:
                    self._file.close()
                    self._file = None
                self._published.close()
                self._changed.notify_all()

    # With the lock held.

    def _write(self, body: Body, checksum: int, codec: Codec) -> None:
        assert self._file is not None
        size, time_us = body.size_bytes, self._now_us()
        header = FrameHeader(Kind.ROWS, codec, self._end, body.rows, size, self._durable, time_us, 0, checksum)
        self._tail = append_frame(self._file, header, body, self._tail)
        self._pending.append((header, body))
        self._end = header.stop

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Take back the frames of an append that came to no end. Raises LogError for the system's errors."""
        tail, end, count = self._tail, self._end, len(self._pending)
        try:
            with self._explained():
                yield
        except BaseException:
            self._tail, self._end = tail, end
            while len(self._pending) > count:
                self._pending.pop()
            assert self._file is not None
            try:
                self._file.truncate(tail.position)
            except OSError as error:
                self._failure = error
            raise

    def _advance(self) -> None:
        """Sync what is written, or wait for the thread that does."""
        self._check()
        if self._syncing:
            self._changed.wait()
            return
        self._syncing = True
        file, through = self._file, self._end
        assert file is not None
        self._changed.release()
        failed: OSError | None = None
        try:
            if self._sync:
                file.sync()
        except OSError as error:
            failed = error
        finally:
            self._changed.acquire()
            self._syncing = False
            self._changed.notify_all()
        if failed is None:
            self._note_durable(through)
        else:
            self._replace_segment(failed)

    def _settle(self) -> None:
        """Everything written is durable, and no sync is under way."""
        while self._syncing or self._durable < self._end:
            self._advance()

    def _begin_segment(self) -> None:
        """Make the next segment, with what is pending as its first frames. Raises OSError."""
        number = self.segments[-1].header.number + 1 if self.segments else 0
        header = replace(self._header, base=self._durable, number=number)
        carried = [(replace(frame, durable_through=self._durable), body) for frame, body in self._pending]
        file, segment, tail = create_segment(self._storage, self.directory, header, carried)
        if self._file is not None:
            self._file.close()
        self._file, self._tail = file, tail
        self.segments.append(segment)
        self.rolled = True
        self._note_durable(self._end)

    def _replace_segment(self, failed: OSError) -> None:
        """A sync failed: what the segment holds is unknown. Write what is not durable anew, or give up."""
        try:
            self._begin_segment()
        except OSError as error:
            self._failure = error
            raise LogError(
                f"{self.directory}: rows from {self._durable:,} on could not be made durable: {failed}; nor in a new "
                f"segment: {error}.\n  They were not acknowledged. Mend the disk and open the log again."
            ) from failed

    def _note_durable(self, through: int) -> None:
        self._durable = through
        while self._pending and self._pending[0][0].stop <= through:
            self._pending.popleft()
        self._published.publish(through)
        self._changed.notify_all()

    def _now_us(self) -> int:
        """The time of an append; never before that of the one before."""
        self._time_us = max(self._time_us, microseconds(wall_clock()))
        return self._time_us

    def _check(self) -> None:
        if self._closed:
            raise LogError(f"{self.directory}: the log is closed")
        if self._failure is not None:
            raise LogError(
                f"{self.directory}: an earlier append could not be made durable: {self._failure}.\n"
                "  Mend the disk and open the log again."
            ) from self._failure

    def _explained(self) -> "_Explained":
        return _Explained(self.directory)


class _Explained:
    """Says what an OSError means for the partition: nothing was appended."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise LogError(
                f"{self._directory}: rows could not be written: {error}.\n"
                "  They were not appended; those before them are safe. Make room or mend the disk, and append again."
            ) from error

"""One partition of an open log: appends in order, synced in groups, acknowledged when durable.

    append ─► in line ─► the first writes the frames of all who wait, in one call ─► sync ─► published ─► acknowledged

Laws
    - ``append`` returns only when its rows are durable. The first in line writes and syncs for all behind it; those who
      come meanwhile are the next group.
    - A segment belongs to one term: an opened log writes to a new one. Its base is what was durable, and whole frames
      that were only written before are its first ones: so nothing that was read from the page cache is taken for
      durable.
    - A failed sync is never retried. The segment is left, and what was not acknowledged is written from memory to a new
      one, once; where that fails too, the partition is closed to appends, and nothing of it was acknowledged.
    - A failed write appends nothing of its append, and fails no other one of the group; the partition goes on.
    - Any thread may call, one has its turn: between two turns all that is written is durable, or the partition is
      closed to appends.
    - Ctrl-C waits until a call has ended: nobody behind it waits for ever.

The line is the writers' queue of LevelDB (DBImpl::Write).
"""

import os
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import FrameType

from engine.errors import LogError
from engine.log.body import Body
from engine.log.durable import DurableOffset, durable_identity
from engine.log.format import Codec, FrameHeader, Kind, SegmentHeader, Tail
from engine.log.recovery import Recovered
from engine.log.segment import Segment, append_frames, create_segment, mark, open_segment, segment_name, whole_frames
from engine.nature import wall_clock
from engine.storage import File, Storage

__all__ = ["Partition"]

GROUP_BYTES = 8 << 20
"""About the most that one sync is for; more would only make those wait who came first."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def microseconds(moment: datetime) -> int:
    """Since 1970, UTC."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Keep Ctrl-C, which only the main thread sees, until the end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    if not callable(before):
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


class _Append:
    """What waits in line to be appended: a frame for each body. In the end ``stop`` or ``error`` is set."""

    __slots__ = ("bodies", "checksums", "codec", "error", "served", "size_bytes", "stop", "woken")

    def __init__(self, bodies: Sequence[Body], codec: Codec) -> None:
        self.bodies = bodies
        self.checksums = [body.checksum() for body in bodies]
        self.size_bytes = sum(body.size_bytes for body in bodies)
        self.codec = codec
        self.served = False  # by one before it
        self.woken = threading.Lock()  # released when it was served, or is the first
        self.woken.acquire()
        self.stop: int | None = None
        self.error: BaseException | None = None


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
        self._turn = threading.RLock()  # for whoever changes anything
        self._joining = threading.Lock()
        self._line: deque[_Append] = deque()
        self._changed = threading.Condition()  # for those who wait for rows, not for those who write them
        self._failure: Exception | None = None
        self._closed = False
        self._file: File | None = None
        self._tail = Tail(0, 0, 0, 0, 0)
        self._pending: list[tuple[FrameHeader, Body]] = []  # written, not durable yet
        self._durable = self._end = found.durable
        self._time_us = found.time_us
        self._published_stop: int | None = None  # of a segment that was renamed, and its name perhaps not durable yet
        self._published = DurableOffset(storage, directory, durable_identity(log, number))
        for frame in found.written:
            self._pending.append((frame.header, Body(frame.header.rows, (frame.body,))))
            self._end = frame.header.stop
        self._published.begin(self._durable)
        if self._pending:
            with self._explained():
                self._begin_segment()

    @property
    def durable(self) -> int:
        """The offset behind the last durable row."""
        return self._durable

    def append(self, bodies: Sequence[Body], codec: Codec) -> int:
        """Append a frame for each body; give the offset behind them when they are durable. Raises LogError."""
        mine = _Append(bodies, codec)
        with _uninterrupted():
            with self._joining:
                self._line.append(mine)
                first = len(self._line) == 1
            if not first:
                mine.woken.acquire()
            if not mine.served:
                group = [mine]
                try:
                    with self._turn:
                        group = self._group()
                        self._lead(group)
                finally:
                    self._leave(group)
        if mine.stop is not None:
            return mine.stop
        if mine.error is not None and not mine.served:
            raise mine.error
        raise LogError(str(mine.error or "what wrote for several was interrupted")) from mine.error

    def wait_beyond(self, offset: int, timeout_s: float) -> bool:
        """Wait until a row at ``offset`` is durable, the partition is closed, or the time is up; say the first."""
        with self._changed:
            self._changed.wait_for(lambda: self._durable > offset or self._closed, timeout_s)
            return self._durable > offset

    def roll(self) -> None:
        """End the newest segment; the next append begins another. Raises LogError."""
        with _uninterrupted(), self._turn:
            self._check_settled()
            self._end_segment()

    def next_segment(self) -> tuple[int, int]:
        """(base, number) of a segment that would begin now. Raises LogError."""
        with self._turn:
            self._check_settled()
            return self._next_segment()

    def publish(self, staged: str) -> None:
        """Make a staged segment, which begins at ``next_segment``, the newest one. Raises LogError, CorruptLog."""
        with self._turn, self._explained():
            self._check()
            file, segment = open_segment(self._storage, staged, named=False)
            with file:
                stop = segment.header.base
                for frame in whole_frames(file, segment):
                    stop = frame.header.stop
            if (segment.header.base, segment.header.number) != self._next_segment():
                raise LogError(f"{staged} was staged for another place in {self.directory}")
            segment.path = os.path.join(self.directory, segment_name(segment.header))
            self._storage.rename(staged, segment.path)
            self._end_segment()
            self.segments.append(segment)
            self.rolled = True
            self._published_stop = stop
            self._finish_publishing()

    def finish_publishing(self) -> None:
        """Make the name of the segment that was published last durable; harmless where it is. Raises LogError."""
        with self._turn, self._explained():
            self._finish_publishing()

    def forget_oldest(self, count: int) -> None:
        """Retention removed so many segments."""
        with self._turn:
            del self.segments[:count]

    def close(self) -> None:
        """Prove by a mark that everything is durable. Harmless when repeated. Raises LogError."""
        with _uninterrupted(), self._turn:
            if self._closed:
                return
            try:
                self._check_settled()
                if self._file is not None and self._failure is None:
                    with self._explained():
                        closing = mark(self._durable, self._now_us())
                        self._tail = append_frames(self._file, [(closing, Body(0, ()))], self._tail)
                        self._file.sync()
            finally:
                with self._changed:
                    self._closed = True
                    self._changed.notify_all()
                self._end_segment()
                self._published.close()

    # What the first in line does.

    def _group(self) -> list[_Append]:
        """The appends at the head of the line, up to so many bytes."""
        group: list[_Append] = []
        size_bytes, limit_bytes = 0, min(GROUP_BYTES, self._segment_bytes)
        with self._joining:
            for append in self._line:
                if group and size_bytes >= limit_bytes:
                    break
                group.append(append)
                size_bytes += append.size_bytes
        return group

    def _leave(self, group: Sequence[_Append]) -> None:
        """The group leaves the line, and the next one is the first."""
        with self._joining:
            for _ in group:
                self._line.popleft()
            following = self._line[0] if self._line else None
        for append in group[1:]:
            append.served = True
            append.woken.release()
        if following is not None:
            following.woken.release()

    def _lead(self, group: Sequence[_Append]) -> None:
        """Give each append its ``stop`` or its ``error``."""
        try:
            self._check()
            if self._file is None or self._tail.position >= self._segment_bytes:
                with self._explained():
                    self._begin_segment()
            written = self._write_each(group)
            self._check()
            if self._durable < self._end:
                self._make_durable()
            for append, stop in written:
                append.stop = stop
        except BaseException as error:
            for append in group:
                append.error = append.error or error
            if not isinstance(error, Exception):
                raise

    def _write_each(self, group: Sequence[_Append]) -> list[tuple[_Append, int]]:
        """Write all in one call; where that fails, one after the other, so that none fails for another one."""
        try:
            return self._write(group)
        except LogError as error:
            if len(group) == 1:
                group[0].error = error
                return []
        written: list[tuple[_Append, int]] = []
        for append in group:
            try:
                written += self._write([append])
            except LogError as error:
                append.error = error
        return written

    def _write(self, group: Sequence[_Append]) -> list[tuple[_Append, int]]:
        """Write frames for all of the group, or for none. Raises LogError."""
        assert self._file is not None
        before, end, time_us = self._tail, self._end, self._now_us()
        new: list[tuple[FrameHeader, Body]] = []
        written: list[tuple[_Append, int]] = []
        for append in group:
            for body, checksum in zip(append.bodies, append.checksums, strict=True):
                size = body.size_bytes
                header = FrameHeader(Kind.ROWS, append.codec, end, body.rows, size, self._durable, time_us, 0, checksum)
                new.append((header, body))
                end = header.stop
            written.append((append, end))
        try:
            with self._explained():
                self._tail = append_frames(self._file, new, before)
        except BaseException:
            try:
                self._file.truncate(before.position)
            except OSError as error:
                self._failure = error
            raise
        self._pending += new
        self._end = end
        return written

    def _make_durable(self) -> None:
        """Sync what is written. Raises LogError where neither that nor writing it anew helps."""
        assert self._file is not None
        try:
            if self._sync:
                self._file.sync()
        except OSError as failed:
            self._replace_segment(failed)
        else:
            self._note_durable(self._end)

    def _next_segment(self) -> tuple[int, int]:
        return self._durable, self.segments[-1].header.number + 1 if self.segments else 0

    def _end_segment(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _finish_publishing(self) -> None:
        self._storage.sync_directory(self.directory)
        if self._published_stop is not None:
            self._end, self._published_stop = self._published_stop, None
            self._note_durable(self._end)

    def _begin_segment(self) -> None:
        """Make the next segment, with what is pending as its first frames. Raises OSError."""
        base, number = self._next_segment()
        header = replace(self._header, base=base, number=number)
        carried = [(replace(frame, durable_through=self._durable), body) for frame, body in self._pending]
        file, segment, tail = create_segment(self._storage, self.directory, header, carried)
        self._end_segment()
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
        """All that is written is durable."""
        with self._changed:
            self._durable = through
            self._changed.notify_all()
        self._pending.clear()
        self._published.publish(through)

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

    def _check_settled(self) -> None:
        """Raise LogError where rows were written that never became durable."""
        if self._durable < self._end:
            self._check()

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

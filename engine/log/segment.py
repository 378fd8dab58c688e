"""Segment files: what they are called, how frames are read from them, and how a new one comes to be.

Laws
    - A segment gets its name when its header and what it carries from an earlier one are durable: a named segment has a
      sound header, or is damaged.
    - A segment is written by one writer in one term and never again.
    - Frames are read by ``pread`` into pooled memory, in windows of many frames; nothing is mapped. Every body is
      compared with its checksum before it is given out.
"""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from engine._core.crc32c import crc32c
from engine._core.pool import Buffer as PooledBuffer
from engine.errors import CorruptLog, LogError
from engine.log.body import Body
from engine.log.format import (
    FRAME_HEADER_BYTES,
    HEADER_BYTES,
    MARKER,
    Codec,
    FrameHeader,
    Kind,
    NewerFormat,
    NotASegment,
    SegmentHeader,
    Tail,
    decode_frame_header,
    decode_header,
    encode_frame,
    encode_header,
    padded,
)
from engine.storage import File, Storage

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = [
    "BadFrame",
    "Frame",
    "Segment",
    "append_frames",
    "create_segment",
    "frames",
    "headers",
    "mark",
    "open_segment",
    "proven_behind",
    "segment_name",
    "segment_names",
    "whole_frames",
]

WINDOW_BYTES = 4 << 20
"""Read at once; frames that are longer are read alone."""

_NAME = re.compile(r"(\d{20})-(\d{10})\.seg")
_PADDING = bytes(64)


class Frame(NamedTuple):
    """A frame that is whole: its header, its body in pooled memory, its place and the one behind it."""

    header: FrameHeader
    body: memoryview
    at: Tail
    behind: Tail


class BadFrame(ValueError):  # noqa: N818 - what it is
    """No valid frame begins at ``position``, where ``offset`` was to go on."""

    def __init__(self, position: int, offset: int, reason: str) -> None:
        self.position = position
        self.offset = offset
        super().__init__(reason)


@dataclass(slots=True)
class Segment:
    """A segment file by its name, and its header once it was read."""

    path: str
    header: SegmentHeader
    first: Tail
    """The place of its first frame."""


def segment_name(header: SegmentHeader) -> str:
    """Names sort as offsets do."""
    return f"{header.base:020}-{header.number:010}.seg"


def segment_names(names: Iterable[str]) -> list[tuple[int, str]]:
    """(number, name) of those that are segments, by number."""
    return sorted((int(match[2]), name) for name in names if (match := _NAME.fullmatch(name)))


def open_segment(storage: Storage, path: str, *, named: bool = True) -> tuple[File, Segment]:
    """Open a segment for reading; one that is staged is not ``named`` yet. Raises CorruptLog, LogError for a later
    format, OSError.
    """
    file = storage.open(path)
    try:
        header, first = decode_header(file.pread(min(HEADER_BYTES, file.size), 0))
        if named and segment_name(header) != os.path.basename(path):
            raise NotASegment(f"it was written as {segment_name(header)}")
    except NewerFormat as error:
        file.close()
        raise LogError(
            f"{path} was written by a later release: {error}.\n  Nothing was changed. Use that one."
        ) from error
    except NotASegment as error:
        file.close()
        raise _damaged(path, 0, str(error)) from error
    except BaseException:
        file.close()
        raise
    return file, Segment(path, header, first)


def create_segment(
    storage: Storage, directory: str, header: SegmentHeader, carried: Iterable[tuple[FrameHeader, Body]]
) -> tuple[File, Segment, Tail]:
    """Make a segment that begins with the ``carried`` frames, durable under its name. Raises OSError."""
    path = os.path.join(directory, segment_name(header))
    with suppress(FileNotFoundError):
        storage.unlink(f"{path}.tmp")  # of an attempt that failed or was interrupted
    file = storage.create(f"{path}.tmp")
    try:
        data, first = encode_header(header)
        file.append(data)
        tail = append_frames(file, carried, first)
        file.sync()
        storage.rename(f"{path}.tmp", path)
        storage.sync_directory(directory)
    except BaseException:
        file.close()
        raise
    return file, Segment(path, header, first), tail


def append_frames(file: File, new: Iterable[tuple[FrameHeader, Body]], tail: Tail) -> Tail:
    """Write frames at the end of the file, in one call. Raises OSError, and then the next one overwrites what this one
    left.
    """
    pieces: list[Buffer] = []
    for header, body in new:
        head, tail = encode_frame(header, tail)
        pieces += (head, *body.pieces, _PADDING[: padded(header.length_bytes) - header.length_bytes])
    file.append(*pieces)
    return tail


def frames(file: File, at: Tail, offset: int, stop_position: int | None = None) -> Iterator[Frame]:
    """The frames from ``at`` on, where rows go on at ``offset``, up to the end of the file or ``stop_position``.

    Raises BadFrame where one is not whole, not in its place, or its body is not what was written; OSError.
    """
    end = file.size if stop_position is None else min(file.size, stop_position)
    wanted = WINDOW_BYTES
    while at.position < end:
        size = min(wanted, end - at.position)
        window = memoryview(PooledBuffer(size))
        file.pread_into(window, at.position)
        start = at.position
        while at.position < end:
            here = window[at.position - start :]
            if len(here) < FRAME_HEADER_BYTES and start + size < end:
                break
            header, behind = _header_in_place(here, at, offset)
            if behind.position > end:
                raise BadFrame(at.position, offset, f"the frame has {header.size_bytes:,} bytes, the file fewer")
            if behind.position > start + size:
                # Whole frames, if the next ones are like this one, and the header of the one behind them.
                wanted = max(1, WINDOW_BYTES // header.size_bytes) * header.size_bytes + FRAME_HEADER_BYTES
                break
            body = here[FRAME_HEADER_BYTES : FRAME_HEADER_BYTES + header.length_bytes]
            if crc32c(body) != header.body_crc:
                raise BadFrame(at.position, offset, "the checksum of the frame's body is wrong")
            yield Frame(header, body, at, behind)
            at, offset = behind, header.stop


def headers(file: File, at: Tail, offset: int) -> Iterator[tuple[FrameHeader, Tail, Tail]]:
    """Each header of the chain from ``at`` on, its place and the one behind its frame; bodies are passed over, and the
    last one may be cut short. Ends where no frame in its place begins. Raises OSError.
    """
    while at.position + FRAME_HEADER_BYTES <= file.size:
        decoded = decode_frame_header(file.pread(FRAME_HEADER_BYTES, at.position), at)
        if decoded is None:
            return
        header, link, behind = decoded
        if (header.sequence, link, header.offset) != (at.sequence, at.link, offset):
            return
        yield header, at, behind
        at, offset = behind, header.stop


def whole_frames(file: File, segment: Segment) -> Iterator[Frame]:
    """The frames of a segment that was finished: the last one is a mark. Raises CorruptLog, OSError."""
    position, marked = segment.first.position, False
    try:
        for frame in frames(file, segment.first, segment.header.base):
            position, marked = frame.behind.position, frame.header.kind is Kind.MARK
            yield frame
    except BadFrame as bad:
        raise _damaged(segment.path, bad.position, str(bad)) from bad
    if not marked:
        raise _damaged(segment.path, position, "it was finished with a mark, which is not there")


def _damaged(path: str, position: int, reason: str) -> CorruptLog:
    text = f"{path} is damaged at byte {position:,}: {reason}.\n  Nothing was changed."
    return CorruptLog(text, path=path, offset=position)


def _header_in_place(data: memoryview, at: Tail, offset: int) -> tuple[FrameHeader, Tail]:
    decoded = decode_frame_header(bytes(data[:FRAME_HEADER_BYTES]), at)
    if decoded is None:
        raise BadFrame(at.position, offset, "no valid frame begins here")
    header, link, behind = decoded
    if (header.sequence, link, header.offset) != (at.sequence, at.link, offset):
        raise BadFrame(at.position, offset, f"this is frame {header.sequence} of other rows, not frame {at.sequence}")
    return header, behind


def proven_behind(file: File, at: Tail) -> int:
    """The highest ``durable_through`` of any valid frame header of this segment behind a bad frame at ``at``; 0
    without one. Raises OSError.
    """
    highest, position = 0, at.position + 1
    while position < file.size:
        size = min(WINDOW_BYTES, file.size - position)
        window = file.pread(size, position)
        found = window.find(MARKER)
        while found >= 0:
            head = window[found : found + FRAME_HEADER_BYTES]
            if len(head) < FRAME_HEADER_BYTES and position + size < file.size:
                break
            decoded = decode_frame_header(head, at)
            if decoded is not None:
                highest = max(highest, decoded[0].durable_through)
            found = window.find(MARKER, found + 1)
        # A header may lie across the border of two windows.
        position += size if position + size >= file.size else size - FRAME_HEADER_BYTES + 1
    return highest


def mark(durable_through: int, time_us: int) -> FrameHeader:
    """A frame without rows, which proves that all rows before it are durable."""
    return FrameHeader(Kind.MARK, Codec.NONE, durable_through, 0, 0, durable_through, time_us, 0, 0)

"""The bytes of a segment: a header, then frames, each checksummed twice. Pure: bytes in, bytes out.

Grammar
    segment := header frame*
    frame   := frame-header body padding            padding: zeros up to the next multiple of 64 bytes
    body    := ROWS: an Arrow IPC stream of one record batch, complete in itself; MARK: nothing

    header, 64 bytes, little-endian                       frame-header, 64 bytes, little-endian
     0  8  magic 89 "ENGLOG" 0a                            0  4  marker ab "LOG"
     8  2  format version, now 1                           4  2  kind: 1 ROWS, 2 MARK
    10  2  flags: 1 = published whole                      6  2  codec of the body: 0 none, 1 lz4, 2 zstd
    12  4  crc32c of bytes 0-11                            8  8  offset of the first row
    16 16  log: random id of the log                      16  4  rows
    32  8  base: the offset of its first row              20  4  length of the body in bytes
    40  8  term of the writer                             24  8  durable_through: all rows below are durable
    48  4  partition                                      32  8  time of the append, microseconds since 1970, UTC
    52  8  number: counts the segments of the partition   40  8  base of the segment
    60  4  crc32c of bytes 0-59                           48  4  sequence of the frame in the segment, from 0
                                                          52  4  link: the last checksum in the header before
                                                          56  4  crc32c of the body
                                                          60  4  crc32c of bytes 0-59, continuing the crc of the
                                                                 segment's header: no frame of another is valid

Laws
    - The links are a chain: a frame header's checksum covers its body's checksum and its link, and so all before it.
    - All zeros is never valid: magic and marker are not zero.
    - Lengths are believed only after the checksum of the header that holds them.
    - Bytes 0-15 of the segment's header keep their meaning in every format version.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum

from engine._core.crc32c import crc32c

__all__ = [
    "BODY_LIMIT_BYTES",
    "FRAME_HEADER_BYTES",
    "HEADER_BYTES",
    "MARKER",
    "VERSION",
    "Codec",
    "FrameHeader",
    "Kind",
    "NewerFormat",
    "NotASegment",
    "SegmentHeader",
    "Tail",
    "decode_frame_header",
    "decode_header",
    "encode_frame",
    "encode_header",
    "padded",
]

VERSION = 1
MAGIC = b"\x89ENGLOG\n"
MARKER = b"\xabLOG"
PUBLISHED_WHOLE = 1
ALIGNMENT_BYTES = 64
BODY_LIMIT_BYTES = (1 << 31) - ALIGNMENT_BYTES
"""The largest body that is written; a longer batch is split before."""

_HEADER = struct.Struct("<8sHHI16sQQIQI")
_FRAME = struct.Struct("<4sHHQIIQqQIIII")
HEADER_BYTES = _HEADER.size
FRAME_HEADER_BYTES = _FRAME.size
_CRC_BYTES = 4


class Kind(IntEnum):
    """What a frame holds."""

    ROWS = 1
    MARK = 2


class Codec(IntEnum):
    """How a body is compressed."""

    NONE = 0
    LZ4 = 1
    ZSTD = 2


class NotASegment(ValueError):  # noqa: N818 - what it is
    """These bytes are not the header of a segment."""


class NewerFormat(ValueError):  # noqa: N818 - what it is
    """The segment was written by a later release."""


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """What a segment says of itself. ``log`` is 32 hexadecimal digits, ``term`` a 64-bit number.

    ``published_whole``: it got its name only when all of it was durable; its last frame is a MARK.
    """

    log: str
    partition: int
    number: int
    base: int
    term: int
    published_whole: bool = False


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """What a frame says of itself."""

    kind: Kind
    codec: Codec
    offset: int
    rows: int
    length_bytes: int
    durable_through: int
    time_us: int
    sequence: int
    body_crc: int

    @property
    def stop(self) -> int:
        """The offset behind its last row."""
        return self.offset + self.rows

    @property
    def size_bytes(self) -> int:
        """Bytes from the beginning of this frame to that of the next one."""
        return FRAME_HEADER_BYTES + padded(self.length_bytes)


@dataclass(frozen=True, slots=True)
class Tail:
    """Where the next frame goes and what it has to carry."""

    position: int
    sequence: int
    link: int
    base: int
    identity: int
    """The checksum of the segment's header, which the checksums of all its frames continue."""


def padded(size_bytes: int) -> int:
    """The next multiple of 64."""
    return -(-size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def encode_header(header: SegmentHeader) -> tuple[bytes, Tail]:
    """The first bytes of a segment, and the place of its first frame."""
    flags = PUBLISHED_WHOLE if header.published_whole else 0
    opening = struct.pack("<8sHH", MAGIC, VERSION, flags)
    data = _HEADER.pack(
        MAGIC,
        VERSION,
        flags,
        crc32c(opening),
        bytes.fromhex(header.log),
        header.base,
        header.term,
        header.partition,
        header.number,
        0,
    )[:-_CRC_BYTES]
    identity = crc32c(data)
    return data + struct.pack("<I", identity), Tail(HEADER_BYTES, 0, identity, header.base, identity)


def decode_header(data: bytes) -> tuple[SegmentHeader, Tail]:
    """Read a segment's header. Raises NotASegment or NewerFormat."""
    if len(data) < 16 or data[:8] != MAGIC or struct.unpack_from("<I", data, 12)[0] != crc32c(data[:12]):
        raise NotASegment("this is not the header of a segment")
    version: int = struct.unpack_from("<H", data, 8)[0]
    if version > VERSION:
        raise NewerFormat(f"format version {version}; this release knows versions up to {VERSION}")
    if version != VERSION or len(data) < HEADER_BYTES:
        raise NotASegment(f"the header is cut off, or of format version {version}, which never was")
    _, _, flags, _, log, base, term, partition, number, identity = _HEADER.unpack_from(data)
    if identity != crc32c(data[: HEADER_BYTES - _CRC_BYTES]):
        raise NotASegment("the checksum of the header is wrong")
    header = SegmentHeader(log.hex(), partition, number, base, term, bool(flags & PUBLISHED_WHOLE))
    return header, Tail(HEADER_BYTES, 0, identity, base, identity)


def encode_frame(header: FrameHeader, tail: Tail) -> tuple[bytes, Tail]:
    """The header of a frame for the place ``tail``, and the place behind the frame. ``header.sequence`` is the
    tail's.
    """
    head = _FRAME.pack(
        MARKER,
        header.kind,
        header.codec,
        header.offset,
        header.rows,
        header.length_bytes,
        header.durable_through,
        header.time_us,
        tail.base,
        tail.sequence,
        tail.link,
        header.body_crc,
        0,
    )[:-_CRC_BYTES]
    link = crc32c(head, tail.identity)
    behind = Tail(tail.position + header.size_bytes, tail.sequence + 1, link, tail.base, tail.identity)
    return head + struct.pack("<I", link), behind


def decode_frame_header(data: bytes, tail: Tail) -> tuple[FrameHeader, int, Tail] | None:
    """The frame header that ``data`` begins with, its link, and the place behind the frame as the header has it; None
    where these bytes are no header of this segment. Whether it is the frame that belongs at ``tail`` is for the caller
    to see: by ``sequence`` and link.
    """
    if len(data) < FRAME_HEADER_BYTES or data[:4] != MARKER:
        return None
    checksum: int = struct.unpack_from("<I", data, 60)[0]
    if checksum != crc32c(data[: FRAME_HEADER_BYTES - _CRC_BYTES], tail.identity):
        return None
    _, kind, codec, offset, rows, length, durable, time_us, base, sequence, link, body_crc, _ = _FRAME.unpack_from(data)
    try:
        header = FrameHeader(Kind(kind), Codec(codec), offset, rows, length, durable, time_us, sequence, body_crc)
    except ValueError:
        return None
    behind = Tail(tail.position + header.size_bytes, sequence + 1, checksum, base, tail.identity)
    return header, link, behind

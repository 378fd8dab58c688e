r"""The records of a state directory as framed, checksummed bytes, and back. Pure: bytes in, bytes out.

Grammar
    manifest := header frame*
    frame    := frame-header payload
    records  := [COMMIT [FINAL]] TERM (TERM | COMMIT FINAL)* [COMMIT]      (``protocol.History`` judges it)

    header, 64 bytes, little-endian                       frame-header, 28 bytes, little-endian
     0  8  magic 89 "ENGMAN" 0a                            0  4  marker ab "REC": never inside a payload, which is ASCII
     8  4  format version, now 1                           4  4  kind: 1 TERM, 2 COMMIT, 3 FINAL
    12  4  crc32c of bytes 0-11                            8  4  sequence of the frame in this file, from 0
    16 16  incarnation                                    12  4  length of the payload in bytes
    32 16  seed                                           16  4  link: the last checksum in the header before this one
    48  8  number of the file                             20  4  crc32c of the payload
    56  4  birth: so many bytes were durable before       24  4  crc32c of bytes 0-23, continuing the crc of the file's
           the file got its name                                 header: a frame of another file is never valid
    60  4  crc32c of bytes 0-59

    The links are a chain: a header's checksum covers its payload's checksum and its link, and so all frames before it.

    payload := canonical JSON: keys sorted, no blanks, ASCII (other characters, and the lone surrogates of odd file
    names, are escaped). What comes back is what JSON holds: tuples come back as lists.

Worked bytes: incarnation 00..0f, seed 10..1f, file 1, one TERM (term "00000000000000aa", first epoch 1):
    000  89 45 4e 47 4d 41 4e 0a  01 00 00 00 e0 dc 72 7f .ENGMAN.......r.
    010  00 01 02 03 04 05 06 07  08 09 0a 0b 0c 0d 0e 0f ................
    020  10 11 12 13 14 15 16 17  18 19 1a 1b 1c 1d 1e 1f ................
    030  01 00 00 00 00 00 00 00  87 00 00 00 5a 42 7f 74 ............ZB.t
    040  ab 52 45 43 01 00 00 00  00 00 00 00 2b 00 00 00 .REC........+...
    050  5a 42 7f 74 f4 ea a8 9e  85 62 9c 31 7b 22 66 69 ZB.t.....b.1{"fi
    060  72 73 74 5f 65 70 6f 63  68 22 3a 31 2c 22 74 65 rst_epoch":1,"te
    070  72 6d 22 3a 22 30 30 30  30 30 30 30 30 30 30 30 rm":"00000000000
    080  30 30 30 61 61 22 7d                             000aa"}

Laws
    - A frame is appended only when every byte before it is durable. So a valid frame header proves all that stands
      before it, and at most the last frame can be torn.
    - A bad frame is a *torn tail* only where no valid frame header stands behind it and it lies at or above ``birth``;
      everything else is *corruption*. Neither is ever repaired here.
    - All zeros is never valid: the magic and the marker are not zero.
    - Bytes 0-15 of the header keep their meaning in every format version, so that older code can tell a newer file.
"""

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeAlias

from engine._core.crc32c import crc32c
from engine.errors import StateError
from engine.progress import Epoch, Offset

if TYPE_CHECKING:
    from engine.sink import Handle
    from engine.stage import StageState

__all__ = [
    "VERSION",
    "Commit",
    "Damage",
    "Decoded",
    "Final",
    "Header",
    "Problem",
    "Record",
    "Tail",
    "Term",
    "begin",
    "canonical",
    "decode",
    "encode",
]

VERSION = 1
MAGIC = b"\x89ENGMAN\n"
MARKER = b"\xabREC"
PAYLOAD_LIMIT_BYTES = 256 << 20
"""Beyond it a COMMIT is refused: reading it back would not be bounded."""

_HEADER = struct.Struct("<8sII16s16sQII")
_FRAME = struct.Struct("<4sIIIIII")
_CRC_BYTES = 4


@dataclass(frozen=True, slots=True)
class Term:
    """One start of the owner of the state directory; its epochs begin with ``first_epoch``."""

    term: str
    first_epoch: Epoch


@dataclass(frozen=True, slots=True)
class Commit:
    """The durable cut at the end of an epoch, complete in itself. Dictionaries are not to be changed."""

    epoch: Epoch
    incarnation: str
    term: str
    fingerprint: dict[str, Any]
    """What of the graph must be the same when the run goes on."""

    offsets: dict[str, Offset]
    """By the name of the source."""

    states: "dict[str, list[StageState | None]]"
    """By the name of the stage, then one for each partition."""

    handles: "list[Handle]"
    """What the sink's writers prepared: enough to publish the epoch from any process."""

    counters: dict[str, int]
    """Totals since the incarnation began, such as ``rows_in``."""


@dataclass(frozen=True, slots=True)
class Final:
    """The commit of ``epoch`` is published and acknowledged: what only it needed may be deleted."""

    epoch: Epoch


Record: TypeAlias = Term | Commit | Final

_KINDS: dict[int, type[Record]] = {1: Term, 2: Commit, 3: Final}
_NUMBERS = {kind: number for number, kind in _KINDS.items()}
_TYPES: dict[str, type] = {
    "term": str,
    "first_epoch": int,
    "epoch": int,
    "incarnation": str,
    "fingerprint": dict,
    "offsets": dict,
    "states": dict,
    "handles": list,
    "counters": dict,
}


@dataclass(frozen=True, slots=True)
class Header:
    """What a manifest file says of itself. ``incarnation`` is 32 hexadecimal digits, ``seed`` 16 secret bytes."""

    incarnation: str
    seed: bytes
    number: int


@dataclass(frozen=True, slots=True)
class Tail:
    """Where the next frame of a file goes and what it has to carry: all that an appender needs to know of the file."""

    size: int
    """Bytes in the file that are valid."""

    sequence: int
    link: int
    identity: int
    """The checksum of the file's header, which the checksums of all its frames continue."""


class Damage(Enum):
    """What is wrong with the bytes behind the last valid frame."""

    TORN = "torn"
    """Never acknowledged: the last append did not come to its end."""

    CORRUPT = "corrupt"
    """These bytes were durable once, or were never written by this code."""

    NEWER = "newer"
    """The file is whole as far as this code can tell, in a later format."""


@dataclass(frozen=True, slots=True)
class Problem:
    """The first bad byte range of a file, and why it is bad."""

    damage: Damage
    offset: int
    reason: str


@dataclass(frozen=True, slots=True)
class Decoded:
    """The records of a file up to its end or to its first problem. ``offsets`` has the place of each record."""

    header: Header | None
    records: tuple[Record, ...]
    offsets: tuple[int, ...]
    tail: Tail
    problem: Problem | None

    @property
    def valid_through(self) -> int:
        """Bytes from the beginning that are valid."""
        return self.tail.size


def canonical(value: object) -> bytes:
    """``value`` as the one JSON text that stands for it. Raises TypeError or ValueError for what JSON cannot hold."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode("ascii")


def begin(header: Header, records: Sequence[Record]) -> tuple[bytes, Tail]:
    """A whole file: the header and its first records, all of which its ``birth`` covers. Raises as ``encode``."""
    birth = _HEADER.size + sum(_FRAME.size + len(_payload(record)) for record in records)
    incarnation = bytes.fromhex(header.incarnation)
    opening = struct.pack("<8sI", MAGIC, VERSION)
    data = _HEADER.pack(MAGIC, VERSION, crc32c(opening), incarnation, header.seed, header.number, birth, 0)
    identity = crc32c(data[:-_CRC_BYTES])
    data = data[:-_CRC_BYTES] + struct.pack("<I", identity)
    tail = Tail(size=len(data), sequence=0, link=identity, identity=identity)
    for record in records:
        frame, tail = encode(record, tail)
        data += frame
    return data, tail


def encode(record: Record, tail: Tail) -> tuple[bytes, Tail]:
    """The frame of ``record`` for the place ``tail``, and the place behind it.

    Raises StateError where JSON cannot hold the record or it is too large.
    """
    payload = _payload(record)
    number = _NUMBERS[type(record)]
    head = struct.pack("<4sIIIII", MARKER, number, tail.sequence, len(payload), tail.link, crc32c(payload))
    frame = head + struct.pack("<I", crc32c(head, tail.identity)) + payload
    return frame, _behind(frame, tail)


def decode(data: bytes) -> Decoded:
    """Read a file from its bytes. Never raises for bad bytes: ``problem`` says what is wrong, and where."""
    nothing = Tail(size=0, sequence=0, link=0, identity=0)
    header = _read_header(data)
    if isinstance(header, Problem):
        return Decoded(None, (), (), nothing, header)
    birth, identity = struct.unpack_from("<II", data, 56)
    tail = Tail(size=_HEADER.size, sequence=0, link=identity, identity=identity)
    records: list[Record] = []
    offsets: list[int] = []
    problem: Problem | None = None
    while tail.size < len(data) and problem is None:
        read = _read_frame(data, tail, birth, header.incarnation)
        if isinstance(read, Problem):
            problem = read
            break
        offsets.append(tail.size)
        records.append(read)
        tail = _behind(data[tail.size : tail.size + _FRAME.size + _length(data, tail.size)], tail)
    if problem is None and tail.size < birth:
        problem = Problem(Damage.CORRUPT, tail.size, f"the file ends here; it was made with {birth} bytes")
    return Decoded(header, tuple(records), tuple(offsets), tail, problem)


def _payload(record: Record) -> bytes:
    names = [field.name for field in fields(record)]
    try:
        payload = canonical({name: getattr(record, name) for name in names})
    except (TypeError, ValueError, RecursionError) as error:
        raise StateError(f"a {type(record).__name__.upper()} record holds what JSON cannot: {error}") from error
    if len(payload) > PAYLOAD_LIMIT_BYTES:
        raise StateError(
            f"a {type(record).__name__.upper()} record of {len(payload):,} bytes is larger than {PAYLOAD_LIMIT_BYTES:,}"
        )
    return payload


def _behind(frame: bytes, tail: Tail) -> Tail:
    return Tail(tail.size + len(frame), tail.sequence + 1, struct.unpack_from("<I", frame, 24)[0], tail.identity)


def _length(data: bytes, at: int) -> int:
    length: int = struct.unpack_from("<I", data, at + 12)[0]
    return length


def _read_header(data: bytes) -> Header | Problem:
    if len(data) < 16 or data[:8] != MAGIC or struct.unpack_from("<I", data, 12)[0] != crc32c(data[:12]):
        return Problem(Damage.CORRUPT, 0, "this is not the header of a manifest")
    version: int = struct.unpack_from("<I", data, 8)[0]
    if version > VERSION:
        return Problem(Damage.NEWER, 8, f"format version {version}; this release knows versions up to {VERSION}")
    if version != VERSION:
        return Problem(Damage.CORRUPT, 8, f"there never was a format version {version}")
    if len(data) < _HEADER.size:
        return Problem(Damage.CORRUPT, 0, f"the file ends within its header, at byte {len(data)}")
    if crc32c(data[:60]) != struct.unpack_from("<I", data, 60)[0]:
        return Problem(Damage.CORRUPT, 0, "the checksum of the header is wrong")
    _, _, _, incarnation, seed, number, _, _ = _HEADER.unpack_from(data)
    return Header(incarnation.hex(), seed, number)


def _read_frame(data: bytes, tail: Tail, birth: int, incarnation: str) -> Record | Problem:
    """The record at ``tail``, or what is wrong there."""
    at = tail.size
    if not _is_frame_header(data, at, tail.identity):
        return _judge(data, tail, birth, "no valid record begins here")
    _, kind, sequence, length, link, checksum, _ = _FRAME.unpack_from(data, at)
    if sequence != tail.sequence or link != tail.link:
        return Problem(Damage.CORRUPT, at, f"this is record {sequence} of other bytes, not record {tail.sequence}")
    payload = data[at + _FRAME.size : at + _FRAME.size + length]
    if len(payload) < length:
        return _judge(data, tail, birth, f"the record has {length} bytes, the file only {len(payload)} of them")
    if crc32c(payload) != checksum:
        return _judge(data, tail, birth, "the checksum of the record is wrong")
    try:
        record = _parse(kind, payload)
    except (ValueError, RecursionError) as error:
        return Problem(Damage.CORRUPT, at, f"the record is whole and makes no sense: {error}")
    if isinstance(record, Commit) and record.incarnation != incarnation:
        return Problem(
            Damage.CORRUPT, at, f"the commit is of incarnation {record.incarnation}, the file of {incarnation}"
        )
    return record


def _judge(data: bytes, tail: Tail, birth: int, reason: str) -> Problem:
    """Whether a bad frame at ``tail`` is a torn tail or corruption: see the laws."""
    at = tail.size
    if at < birth:
        return Problem(Damage.CORRUPT, at, f"{reason}; the file was made with these bytes")
    later = data.find(MARKER, at + 1)
    while later >= 0:
        if _is_frame_header(data, later, tail.identity):
            return Problem(Damage.CORRUPT, at, f"{reason}; a valid record follows at byte {later}")
        later = data.find(MARKER, later + 1)
    return Problem(Damage.TORN, at, reason)


def _is_frame_header(data: bytes, at: int, identity: int) -> bool:
    head = data[at : at + _FRAME.size]
    if len(head) < _FRAME.size or not head.startswith(MARKER):
        return False
    return bool(struct.unpack_from("<I", head, 24)[0] == crc32c(head[:-_CRC_BYTES], identity))


def _parse(kind: int, payload: bytes) -> Record:
    """The record of a payload whose checksum is right. Raises ValueError."""
    made = _KINDS.get(kind)
    if made is None:
        raise ValueError(f"there is no kind of record {kind}")
    values = json.loads(payload)
    names = {field.name for field in fields(made)}
    if not isinstance(values, dict) or values.keys() != names:
        raise ValueError(f"a {made.__name__.upper()} holds {', '.join(sorted(names))}")
    for name, value in values.items():
        if not isinstance(value, _TYPES[name]):
            raise ValueError(f"{name} is {value!r}")
    return made(**values)

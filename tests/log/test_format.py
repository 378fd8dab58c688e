"""The format is what it was: the worked bytes, logs that earlier versions wrote, every bit under a checksum."""

import re
import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from engine import Log
from engine.errors import LogError
from engine.log.format import (
    Codec,
    FrameHeader,
    Kind,
    NewerFormat,
    NotASegment,
    SegmentHeader,
    decode_frame_header,
    decode_header,
    encode_frame,
    encode_header,
)
from engine.log.segment import mark

README = Path(__file__).parents[2] / "engine" / "log" / "README.md"
GOLDEN = Path(__file__).parent / "golden" / "v1"
HEADER = SegmentHeader(bytes(range(16)).hex(), 0, 2, 5, 0xAA)


def test_the_worked_bytes_are_those_that_are_written():
    lines = re.findall(
        r"^    [0-9a-f]{3}  ((?:[0-9a-f]{2} ?){8}) ((?: ?[0-9a-f]{2}){8})", README.read_text(), re.MULTILINE
    )
    data, tail = encode_header(HEADER)
    frame, _ = encode_frame(mark(5, 1_000_000), tail)
    assert bytes.fromhex("".join(first + second for first, second in lines)) == data + frame


def test_every_bit_of_the_headers_is_under_a_checksum():
    data, tail = encode_header(HEADER)
    assert decode_header(data) == (HEADER, tail)
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises((NotASegment, NewerFormat)):
            decode_header(bytes(flipped))
    frame = FrameHeader(Kind.ROWS, Codec.LZ4, 5, 7, 100, 5, -3, 0, 0xDEADBEEF)
    head, behind = encode_frame(frame, tail)
    assert decode_frame_header(head, tail) == (frame, tail.link, behind)
    assert (behind.position, frame.stop) == (64 + 64 + 128, 12)
    for bit in range(len(head) * 8):
        flipped = bytearray(head)
        flipped[bit // 8] ^= 1 << bit % 8
        assert decode_frame_header(bytes(flipped), tail) is None
    _, other = encode_header(SegmentHeader(HEADER.log, 0, 3, 5, 0xAA))
    assert decode_frame_header(head, other) is None


def test_zeros_are_nothing():
    with pytest.raises(NotASegment):
        decode_header(bytes(64))
    assert decode_frame_header(bytes(64), encode_header(HEADER)[1]) is None


@pytest.mark.parametrize("codec", ["plain", "lz4", "zstd"])
def test_logs_of_version_1_are_read_and_written_for_ever(tmp_path, codec):
    path = tmp_path / codec
    shutil.copytree(GOLDEN / codec, path)
    with Log(path) as log:
        assert log.torn == ()
        numbers = [n for batch in log.read() for n in batch.column("n").to_pylist()]
        assert numbers == list(range(30))
        [last] = log.read(partition=1)
        assert last.to_pylist() == [{"n": 100, "text": None, "kind": "c"}]
        assert log.groups["readers"].offsets() == (7, 0)
        assert log.append(last) == 31
        assert [batch.num_rows for batch in log.read(25)] == [5, 1]


def test_a_later_format_is_refused_and_left(tmp_path):
    path = tmp_path / "log"
    with Log(path) as log:
        log.append(pa.table({"n": [1]}))
    [segment] = path.rglob("*.seg")
    data = bytearray(segment.read_bytes())
    data[8] = 2
    from engine._core.crc32c import crc32c

    data[12:16] = crc32c(bytes(data[:12])).to_bytes(4, "little")
    segment.write_bytes(bytes(data))
    with pytest.raises(LogError, match=r"written by a later release: format version 2"):
        Log(path)
    assert segment.read_bytes() == bytes(data)

"""CRC32C: golden vectors, a bitwise model, every split point, and both code paths."""

import array
import os
import random
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine._core.crc32c import crc32c, crc32c_implementation, crc32c_portable

PATHS = pytest.mark.parametrize("checksum", [crc32c, crc32c_portable])

# RFC 3720, appendix B.4, and the check value of the CRC catalogue.
GOLDEN = [
    (b"", 0x00000000),
    (b"123456789", 0xE3069283),
    (bytes(32), 0x8A9136AA),
    (b"\xff" * 32, 0x62A8AB43),
    (bytes(range(32)), 0x46DD794E),
    (bytes(reversed(range(32))), 0x113FDB5C),
    (
        bytes.fromhex(
            "01c00000 00000000 00000000 00000000 14000000 0000040000000014 00000018 28000000 00000000 02000000 00000000"
        ),
        0xD9963A56,
    ),
]


def model(data: bytes, value: int = 0) -> int:
    """One bit at a time, as the definition has it."""
    state = value ^ 0xFFFFFFFF
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = (state >> 1) ^ (0x82F63B78 if state & 1 else 0)
    return state ^ 0xFFFFFFFF


@PATHS
@pytest.mark.parametrize(("data", "expected"), GOLDEN)
def test_golden_vectors(checksum, data, expected):
    assert checksum(data) == expected


@PATHS
@given(data=st.binary(max_size=300), value=st.integers(0, 2**32 - 1))
def test_equals_the_bitwise_model(checksum, data, value):
    assert checksum(data, value) == model(data, value)


@PATHS
@given(data=st.binary(max_size=300), at=st.integers(0, 300))
def test_any_split_gives_the_same(checksum, data, at):
    assert checksum(data[at:], checksum(data[:at])) == checksum(data)


@pytest.mark.parametrize("around", [0, 8, 128, 384, 768, 2048, 6144, 6144 + 384, 12288, 40000])
def test_paths_agree_around_every_block_size(around):
    data = random.Random(around).randbytes(around + 20)
    for size in range(max(0, around - 9), around + 10):
        for start in (0, 1, 3):
            view = memoryview(data)[start : start + size]
            assert crc32c(view) == crc32c_portable(view)


def test_long_input_equals_the_model():
    data = random.Random(1).randbytes(20_011)
    assert crc32c(data) == crc32c_portable(data) == model(data)


@PATHS
def test_every_flipped_bit_shows(checksum):
    data = random.Random(2).randbytes(64)
    expected = checksum(data)
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << (bit % 8)
        assert checksum(flipped) != expected


@PATHS
def test_takes_any_contiguous_buffer(checksum):
    expected = checksum(b"123456789")
    for form in (bytearray, memoryview, lambda raw: array.array("B", raw)):
        assert checksum(form(b"123456789")) == expected
    words = array.array("I", [1, 2, 3])
    assert checksum(words) == checksum(words.tobytes())


@PATHS
def test_refuses_what_it_cannot_read(checksum):
    with pytest.raises(TypeError):
        checksum("text")
    with pytest.raises(BufferError):
        checksum(memoryview(b"123456")[::2])
    with pytest.raises(OverflowError):
        checksum(b"", -1)
    with pytest.raises(OverflowError):
        checksum(b"", 2**32)


def test_threads_agree():
    data = random.Random(3).randbytes(200_000)
    expected, results = crc32c_portable(data), []
    threads = [threading.Thread(target=lambda: results.append(crc32c(data))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 4


def test_the_portable_path_can_be_forced():
    program = "from engine._core.crc32c import *; print(crc32c_implementation(), crc32c(b'123456789'))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "ENGINE_SIMD": "scalar"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["portable", str(0xE3069283)]
    assert crc32c_implementation() in ("hardware", "portable")

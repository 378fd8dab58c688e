"""The stream that encoders write to: few calls to the system, the bytes and their checksum as they came."""

import errno

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine._core.crc32c import crc32c
from engine.sinks.staged_file import GATHER_BYTES, StagedFile
from engine.storage import Storage


class CountedFile:
    """A file that knows its appends, and fails where it is told to."""

    path = "memory"

    def __init__(self):
        self.appends = []
        self.fails = False
        self.closed = False

    @property
    def size(self):
        return sum(map(len, self.appends))

    def append(self, *buffers):
        if self.fails:
            raise OSError(errno.ENOSPC, "no space left on device")
        self.appends.append(b"".join(bytes(memoryview(buffer)) for buffer in buffers))

    def sync(self):
        pass

    def close(self):
        self.closed = True


PIECES = st.lists(st.one_of(st.binary(max_size=20), st.integers(0, GATHER_BYTES + 1).map(bytes)), max_size=8)
AS = st.sampled_from([bytes, pa.py_buffer, bytearray, memoryview])


@given(st.lists(st.tuples(PIECES, AS), max_size=4))
def test_the_file_holds_what_was_written(parts):
    file, written = CountedFile(), b""
    staged = StagedFile("name", file)
    for pieces, kind in parts:
        for piece in pieces:
            assert staged.write(kind(piece)) == len(piece)
            written += piece
            assert staged.tell() == staged.size == len(written)
            assert len(written) - file.size < GATHER_BYTES
        staged.flush()
        assert file.size == len(written)
    staged.finish()
    assert b"".join(file.appends) == written
    assert staged.checksum == crc32c(written)
    assert file.closed


def test_small_pieces_go_together():
    file = CountedFile()
    staged = StagedFile("name", file)
    for _ in range(1000):
        staged.write(b"12345678")
    staged.finish()
    assert len(file.appends) == 1


def test_what_the_writer_changes_afterwards_does_not_matter():
    file, piece = CountedFile(), bytearray(b"before")
    staged = StagedFile("name", file)
    staged.write(piece)
    piece[:] = b"behind"
    staged.finish()
    assert file.appends == [b"before"]


def test_after_a_failed_write_all_else_is_dropped():
    file = CountedFile()
    staged = StagedFile("name", file)
    staged.write(b"kept")
    staged.flush()
    file.fails = True
    staged.write(b"lost")
    with pytest.raises(OSError, match="no space"):
        staged.flush()
    file.fails = False
    staged.write(b"a footer")
    staged.flush()
    assert file.appends == [b"kept"]


def test_discard_drops_what_waits(tmp_path):
    path = str(tmp_path / "file")
    staged = StagedFile("file", Storage().create(path))
    staged.write(b"waits")
    staged.discard()
    staged.write(b"a footer")
    staged.flush()
    assert (tmp_path / "file").read_bytes() == b""

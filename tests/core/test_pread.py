"""Reads of several pieces against slices of what was written; ends and errors are told."""

import array
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine._core.pread import pread_many

CONTENT = bytes(range(256)) * 64


@pytest.fixture(scope="module")
def descriptor(tmp_path_factory):
    path = tmp_path_factory.mktemp("pread") / "file"
    path.write_bytes(CONTENT)
    opened = os.open(path, os.O_RDONLY)
    yield opened
    os.close(opened)


def pieces(pairs):
    return array.array("q", [offset for offset, _ in pairs]), array.array("q", [size for _, size in pairs])


@given(st.lists(st.tuples(st.integers(0, len(CONTENT) - 600), st.integers(0, 600)), max_size=20))
def test_pieces_are_joined_in_their_order(descriptor, pairs):
    expected = b"".join(CONTENT[offset : offset + size] for offset, size in pairs)
    assert pread_many(descriptor, *pieces(pairs)) == expected


def test_an_early_end_and_errors_are_told(descriptor):
    with pytest.raises(EOFError, match=f"ends at byte {len(CONTENT)}"):
        pread_many(descriptor, *pieces([(0, 10), (len(CONTENT) - 5, 6)]))
    with pytest.raises(OSError, match="Bad file descriptor"):
        pread_many(-1, *pieces([(0, 1)]))
    with pytest.raises(ValueError, match="no piece"):
        pread_many(descriptor, *pieces([(-1, 1)]))
    with pytest.raises(ValueError, match="1 sizes"):
        pread_many(descriptor, array.array("q", [0, 1]), array.array("q", [1]))

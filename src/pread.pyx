"""Several positioned reads in one call, without the GIL. The door to it is `engine.storage.File.pread_many`."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t
from libc.string cimport strerror

cdef extern from "pread.hpp" namespace "engine" nogil:
    cdef cppclass ReadOutcome:
        int error
        int64_t ended
    ReadOutcome read_pieces "engine::pread_many"(
        int descriptor, const int64_t* offsets, const int64_t* sizes, size_t count, uint8_t* target
    )


def pread_many(int descriptor, const int64_t[::1] offsets not None, const int64_t[::1] sizes not None):
    """The pieces at these offsets and of these sizes, joined. Raises OSError, EOFError where the file ends before."""
    cdef size_t count = <size_t> offsets.shape[0]
    cdef int64_t total = 0
    cdef size_t i
    cdef bytes pieces
    cdef uint8_t* target
    cdef ReadOutcome outcome
    if <size_t> sizes.shape[0] != count:
        raise ValueError(f"{count} offsets, but {sizes.shape[0]} sizes")
    for i in range(count):
        if offsets[i] < 0 or not 0 <= sizes[i] < <int64_t> 1 << 40:
            raise ValueError(f"there is no piece of {sizes[i]} bytes at {offsets[i]}")
        total += sizes[i]
    pieces = PyBytes_FromStringAndSize(NULL, <Py_ssize_t> total)
    if total == 0:
        return pieces
    target = <uint8_t*> PyBytes_AS_STRING(pieces)
    with nogil:
        outcome = read_pieces(descriptor, &offsets[0], &sizes[0], count, target)
    if outcome.error:
        raise OSError(outcome.error, strerror(outcome.error).decode("utf-8", "replace"))
    if outcome.ended >= 0:
        raise EOFError(f"the file ends at byte {outcome.ended}, more was expected")
    return pieces

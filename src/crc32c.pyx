"""CRC32C (Castagnoli) of any contiguous buffer: the checksum of every durable frame.

Laws: `crc32c(b, crc32c(a)) == crc32c(a + b)`; hardware and portable code give the same bits (they are stored in files);
the buffer is only read, and the GIL is released while a large one is.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t, uint32_t

cdef extern from "crc32c.hpp" namespace "engine" nogil:
    uint32_t checksum "engine::crc32c"(uint32_t value, const uint8_t* data, size_t size)
    uint32_t checksum_portable "engine::crc32c_portable"(uint32_t value, const uint8_t* data, size_t size)
    bint uses_hardware "engine::crc32c_uses_hardware"()

# Below this many bytes (under a microsecond) giving up the GIL and getting it back costs more than the checksum.
cdef Py_ssize_t RELEASE_FROM_BYTES = 8192


def crc32c(data, uint32_t value=0):
    """The CRC32C of `data`, continuing `value`, the checksum of the bytes before it.

    `data` is any object with a contiguous buffer (bytes, memoryview, NumPy array, Arrow buffer).

    Raises:
      TypeError: `data` has no buffer.
      BufferError: its buffer is not contiguous.
      OverflowError: `value` does not fit 32 unsigned bits.
    """
    cdef Py_buffer view
    cdef const uint8_t* start
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    start = <const uint8_t*> view.buf
    try:
        if view.len < RELEASE_FROM_BYTES:
            return checksum(value, start, <size_t> view.len)
        with nogil:
            value = checksum(value, start, <size_t> view.len)
        return value
    finally:
        PyBuffer_Release(&view)


def crc32c_portable(data, uint32_t value=0):
    """As `crc32c`, always by the portable code: the reference that the hardware path is tested against."""
    cdef Py_buffer view
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        with nogil:
            value = checksum_portable(value, <const uint8_t*> view.buf, <size_t> view.len)
        return value
    finally:
        PyBuffer_Release(&view)


def crc32c_implementation():
    """Which code `crc32c` runs on this machine: "hardware" or "portable"."""
    return "hardware" if uses_hardware() else "portable"

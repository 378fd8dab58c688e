"""The process's pool of recycled buffers, and `Buffer`, a block of it as a Python object.

The laws (alignment, padding, ownership, the limit on idle bytes) are written in pool.hpp. Everything here may be called
from any thread. Other kernels reach the pool through the capsule `_api`, never through these Python functions.
"""

from cpython.buffer cimport PyBuffer_FillInfo
from cpython.pycapsule cimport PyCapsule_New

from pool cimport (
    PoolApi,
    PoolStatistics,
    keep_pool_whole_across_forks,
    shared_pool,
    shared_pool_acquire,
    shared_pool_release,
    shared_pool_retain,
)


cdef class Buffer:
    """Bytes in pooled memory: 64-byte aligned, followed by 64 spare bytes, given back when the last reference goes.

    Supports the buffer protocol (format "B"), so that numpy.frombuffer, memoryview and pyarrow.py_buffer work on it. A
    new buffer is writable and its contents are undefined. A buffer that a kernel made over foreign Arrow memory is
    read-only. Raises ValueError for a negative size and MemoryError when there is no memory.
    """

    cdef void* _data
    cdef Py_ssize_t _size_bytes
    cdef bint _pooled
    cdef object _owner

    def __cinit__(self, Py_ssize_t size):
        if size < 0:
            raise ValueError(f"the size of a buffer is negative: {size}")
        self._pooled = True
        self._data = shared_pool_acquire(size)
        if self._data is NULL:
            raise MemoryError(f"no memory for a buffer of {size} bytes")
        self._size_bytes = size

    def __dealloc__(self):
        if self._pooled:
            shared_pool_release(self._data)

    def __len__(self):
        return self._size_bytes

    def __getbuffer__(self, Py_buffer* view, int flags):
        PyBuffer_FillInfo(view, self, self._data, self._size_bytes, not self._pooled, flags)

    def __releasebuffer__(self, Py_buffer* view):
        pass

    def __repr__(self):
        return f"<Buffer of {self._size_bytes} bytes>"

    @property
    def nbytes(self):
        """The size in bytes."""
        return self._size_bytes

    @property
    def readonly(self):
        """Whether the bytes belong to someone else."""
        return not self._pooled


cdef object _wrap(void* block, size_t size_bytes):
    cdef Buffer buffer
    try:
        buffer = Buffer(0)
    except BaseException:
        shared_pool_release(block)
        raise
    shared_pool_release(buffer._data)
    buffer._data = block
    buffer._size_bytes = size_bytes
    return buffer


cdef object _view(const void* data, size_t size_bytes, object owner):
    cdef Buffer buffer = Buffer(0)
    shared_pool_release(buffer._data)
    buffer._pooled = False
    buffer._data = <void*>data
    buffer._size_bytes = size_bytes
    buffer._owner = owner
    return buffer


cdef PoolApi _table
_table.acquire = shared_pool_acquire
_table.retain = shared_pool_retain
_table.release = shared_pool_release
_table.wrap = _wrap
_table.view = _view
_api = PyCapsule_New(&_table, "engine._core.pool._api", NULL)
if not keep_pool_whole_across_forks():
    raise MemoryError("no memory to be told of forks")


def set_limit(limit_bytes: int) -> None:
    """Bounds the idle bytes that the pool retains (128 MiB at first); what is above goes back to the system at once.

    Raises ValueError for a negative limit.
    """
    if limit_bytes < 0:
        raise ValueError(f"the limit of the pool is negative: {limit_bytes}")
    cdef size_t limit = limit_bytes
    with nogil:
        shared_pool().set_limit(limit)


def trim() -> int:
    """Gives all idle bytes back to the system and returns how many they were."""
    cdef size_t freed_bytes
    with nogil:
        freed_bytes = shared_pool().trim()
    return freed_bytes


def statistics() -> dict[str, int]:
    """The pool's counters: in_use_bytes, idle_bytes, and the hits and misses of recycled sizes."""
    cdef PoolStatistics now
    with nogil:
        now = shared_pool().statistics()
    return {"in_use_bytes": now.in_use_bytes, "idle_bytes": now.idle_bytes, "hits": now.hits, "misses": now.misses}

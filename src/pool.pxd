"""The shared buffer pool as other kernels see it: a table of functions, and pooled blocks as Python objects.

Call `import_pool()` once at module level; then `new_buffer` and the C++ class `Block` (pool.hpp) work.
"""

from cpython.pycapsule cimport PyCapsule_GetPointer


cdef extern from "pool.hpp" namespace "engine":
    struct PoolApi:
        void* (*acquire)(size_t size_bytes) nogil
        void (*retain)(void* block) nogil
        void (*release)(void* block) nogil
        object (*wrap)(void* block, size_t size_bytes)
        object (*view)(const void* data, size_t size_bytes, object owner)

    struct PoolStatistics:
        size_t in_use_bytes
        size_t idle_bytes
        unsigned long long hits
        unsigned long long misses

    cppclass Pool:
        size_t trim() nogil
        void set_limit(size_t limit_bytes) nogil
        PoolStatistics statistics() nogil

    const PoolApi* pool_api
    void set_pool_api(const PoolApi* api)
    Pool& shared_pool() nogil
    bint keep_pool_whole_across_forks()
    void* shared_pool_acquire(size_t size_bytes) nogil
    void shared_pool_retain(void* block) nogil
    void shared_pool_release(void* block) nogil


cdef inline int import_pool() except -1:
    """Binds this module to the one pool of the process."""
    from importlib import import_module

    api = import_module("engine._core.pool")._api
    set_pool_api(<const PoolApi*>PyCapsule_GetPointer(api, "engine._core.pool._api"))
    return 0


cdef inline object new_buffer(size_t size_bytes, void** data):
    """A writable Buffer of at least 64 bytes' alignment and padding; `data` receives its address."""
    cdef void* block = pool_api.acquire(size_bytes)
    if block is NULL:
        raise MemoryError(f"no memory for a buffer of {size_bytes} bytes")
    data[0] = block
    return pool_api.wrap(block, size_bytes)


cdef inline object view_memory(const void* data, size_t size_bytes, object owner):
    """A read-only Buffer over memory that lives as long as `owner`."""
    return pool_api.view(data, size_bytes, owner)

"""Recent keys: the exact table of the ids seen last, by position.

Laws: least recently seen goes first; answers are exact; one owner at a time; the GIL is released during
a batch; foreign buffers are only read. Structure and invariants: `lru.hpp`, `hint_table.hpp`, `id_ring.hpp`.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libcpp.vector cimport vector

cdef extern from "lru.hpp" namespace "engine" nogil:
    uint64_t NOWHERE "engine::kNowhere"
    cdef cppclass IdSeed:
        IdSeed()
    IdSeed load_seed(const uint8_t* data)
    cdef cppclass HintTable:
        uint64_t bucket_count()
        uint64_t overflow_count()
        uint64_t splits()
    cdef cppclass Keys "engine::RecentKeys":
        Keys(IdSeed seed, uint64_t start, uint32_t chunk_bits, uint32_t hint_bits) except +
        const HintTable& table()
        uint64_t tail()
        size_t bytes()
        void reserve(uint64_t count, uint64_t oldest) except +
        void sight(const uint8_t* ids, const uint32_t* rows, size_t count, uint64_t oldest, uint32_t* ages) except +
        void unsight(uint32_t age, uint64_t oldest)
        void forget_below(uint64_t oldest)
        void shrink_table()


cdef class RecentKeys:
    """Where each of the ids seen last was seen last.

    Args:
      seed: 16 secret bytes.
      start: the position of the first id.
      chunk_bits: the ring takes memory by 2**chunk_bits ids.
      hint_bits: fingerprint bits in use; fewer than 32 make ids collide, for tests.
    """

    cdef Keys* keys
    cdef uint64_t oldest_

    def __cinit__(self, bytes seed not None, *, uint64_t start=0, uint32_t chunk_bits=16, uint32_t hint_bits=32):
        if len(seed) != 16:
            raise ValueError(f"seed: 16 bytes are needed, not {len(seed)}")
        if chunk_bits > 24 or not 1 <= hint_bits <= 32:
            raise ValueError("chunk_bits must be at most 24 and hint_bits 1 to 32")
        self.keys = new Keys(load_seed(<const uint8_t*> PyBytes_AS_STRING(seed)), start, chunk_bits, hint_bits)
        self.oldest_ = start

    def __dealloc__(self):
        del self.keys

    def sight(self, const uint8_t[::1] ids not None):
        """Give each id (16 bytes) the next position; its position before as uint64, 2**64 - 1 = none.

        Raises MemoryError; then the ids before the one that found no memory have been sighted.
        """
        cdef size_t count = <size_t> ids.shape[0] // 16
        cdef size_t i
        cdef uint64_t start = self.keys.tail()
        cdef vector[uint32_t] ages
        cdef bytes previous = PyBytes_FromStringAndSize(NULL, <Py_ssize_t> count * 8)
        cdef uint64_t* target = <uint64_t*> PyBytes_AS_STRING(previous)
        if count == 0:
            return previous
        with nogil:
            ages.resize(count)
            self.keys.reserve(count, self.oldest_)
            self.keys.sight(&ids[0], NULL, count, self.oldest_, ages.data())
            for i in range(count):
                target[i] = start + i - ages[i] if ages[i] else NOWHERE
        return previous

    def unsight(self, uint64_t previous):
        """Take the last sighting back; `previous` is what it gave, 2**64 - 1 = nothing."""
        if self.keys.tail() == self.oldest_:
            raise ValueError("there is no sighting to take back")
        self.keys.unsight(0 if previous == NOWHERE else <uint32_t> (self.keys.tail() - 1 - previous), self.oldest_)

    def forget_below(self, uint64_t position, *, bint shrink=False):
        """Forget the ids last seen below `position`; `shrink` lets the table shrink too."""
        if not self.oldest_ <= position <= self.keys.tail():
            raise ValueError(f"{position} is not between {self.oldest_} and {self.keys.tail()}")
        self.oldest_ = position
        self.keys.forget_below(position)
        if shrink:
            self.keys.shrink_table()

    @property
    def oldest(self):
        """The first position that is remembered."""
        return self.oldest_

    @property
    def tail(self):
        """The next position."""
        return self.keys.tail()

    @property
    def size_bytes(self):
        """Memory of the ring and the hints."""
        return self.keys.bytes()

    @property
    def buckets(self):
        """(buckets, overflow buckets, splits so far) of the hint table."""
        return self.keys.table().bucket_count(), self.keys.table().overflow_count(), self.keys.table().splits()

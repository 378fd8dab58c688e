"""Split-block Bloom filter over 16-byte ids: says "surely new" or "look".

Laws: never a false negative; the bits are a persisted format, the same from vector and scalar code; testing only reads,
adding needs one owner. Layout and sources: `bloom.hpp`.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libcpp cimport bool as cbool
from libcpp.vector cimport vector

cdef extern from "id_hash.hpp" namespace "engine" nogil:
    cdef struct Id:
        uint64_t low
        uint64_t high
    cdef cppclass IdSeed:
        IdSeed()
    IdSeed load_seed(const uint8_t* data)
    Id load_id(const uint8_t* data)
    uint64_t hash_id(const Id& id, const IdSeed& seed)

cdef extern from "bloom.hpp" namespace "engine" nogil:
    cdef cppclass BloomView:
        BloomView()
        const uint8_t* blocks
        uint32_t block_count
    uint32_t bloom_block_count(uint64_t keys, uint32_t bits_per_key)
    void bloom_add(uint8_t* blocks, uint32_t block_count, uint64_t hash)
    void bloom_test_many(
        const BloomView& filter, const uint64_t* hashes, size_t count, uint8_t* verdicts, cbool scalar_only
    )


cdef class BloomFilter:
    """A filter for about `keys` ids at `bits_per_key` bits each.

    Args:
      seed: 16 secret bytes.
      keys: how many ids it is made for; more make it less selective, never wrong.
      blocks: the blocks of an earlier filter with the same seed, instead of an empty one.
    """

    cdef IdSeed seed
    cdef vector[uint8_t] blocks_
    cdef vector[uint64_t] hashes

    def __cinit__(self, bytes seed not None, uint64_t keys=0, uint32_t bits_per_key=16, *, blocks=None):
        if len(seed) != 16:
            raise ValueError(f"seed: 16 bytes are needed, not {len(seed)}")
        self.seed = load_seed(<const uint8_t*> PyBytes_AS_STRING(seed))
        if blocks is None:
            self.blocks_.resize(<size_t> bloom_block_count(keys, bits_per_key) * 32)
        else:
            self._load(blocks)

    cdef int _load(self, const uint8_t[::1] blocks) except -1:
        if blocks.shape[0] == 0 or blocks.shape[0] % 32:
            raise ValueError(f"blocks: a multiple of 32 bytes is needed, not {blocks.shape[0]}")
        self.blocks_.assign(&blocks[0], &blocks[0] + blocks.shape[0])
        return 0

    cdef size_t _hash(self, const uint8_t[::1] ids) except? 0:
        cdef size_t count = <size_t> ids.shape[0] // 16
        cdef size_t i
        self.hashes.resize(count)
        with nogil:
            for i in range(count):
                self.hashes[i] = hash_id(load_id(&ids[0] + i * 16), self.seed)
        return count

    def add(self, const uint8_t[::1] ids not None):
        """Add ids, 16 bytes each."""
        cdef size_t count = self._hash(ids)
        cdef uint32_t blocks = <uint32_t> (self.blocks_.size() // 32)
        cdef size_t i
        with nogil:
            for i in range(count):
                bloom_add(self.blocks_.data(), blocks, self.hashes[i])

    def test(self, const uint8_t[::1] ids not None, *, bint scalar=False):
        """One byte an id (16 bytes each): 1 = was perhaps added, 0 = surely not. `scalar` forces the portable code."""
        cdef size_t count = self._hash(ids)
        cdef bytes verdicts = PyBytes_FromStringAndSize(NULL, <Py_ssize_t> count)
        cdef uint8_t* target = <uint8_t*> PyBytes_AS_STRING(verdicts)
        cdef BloomView view
        view.blocks = self.blocks_.data()
        view.block_count = <uint32_t> (self.blocks_.size() // 32)
        with nogil:
            bloom_test_many(view, self.hashes.data(), count, target, scalar)
        return verdicts

    @property
    def blocks(self):
        """The filter's bits: blocks of 32 bytes."""
        return PyBytes_FromStringAndSize(<const char*> self.blocks_.data(), <Py_ssize_t> self.blocks_.size())

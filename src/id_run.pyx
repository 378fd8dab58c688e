"""Sealed runs of ids: encoding, searching and merging their blocks; the bytes come from and go to the caller.

Laws: no I/O; every block is verified when it is read; a damaged block raises `DamagedBlockError` with its number and
gives no answer; one owner at a time per object. The block format and the algorithms: `run_block.hpp`.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy
from libcpp cimport bool as cbool
from libcpp.vector cimport vector

cdef extern from "run_block.hpp" namespace "engine" nogil:
    size_t BLOCK_BYTES "engine::kBlockBytes"
    size_t BLOCK_ENTRIES "engine::kBlockEntries"
    uint32_t NO_BLOCK "0xffffffffu"
    cdef struct Id:
        uint64_t low
        uint64_t high
    cdef cppclass IdSeed:
        IdSeed()
    IdSeed load_seed(const uint8_t* data)
    Id load_id(const uint8_t* data)
    cdef cppclass RunEntry:
        Id id
        uint64_t position
    cdef cppclass RunKey:
        uint64_t hash
    RunEntry load_entry(const uint8_t* data)
    RunKey run_key(const Id& id, const IdSeed& seed)
    cbool block_is_sound(const uint8_t* block, uint32_t number)
    uint64_t find_in_block(const uint8_t* block, const RunKey& key, const IdSeed& seed)
    cdef cppclass Encoder "engine::RunEncoder":
        Encoder(IdSeed seed, uint64_t expected_keys, uint32_t bits_per_key) except +
        void add(const RunEntry& entry) except +
        void close_block()
        size_t closed_bytes()
        const vector[uint8_t]& blocks()
        void drop(size_t size) except +
        const vector[uint8_t]& filter()
        const vector[Id]& first_ids()
        uint64_t count()
        uint64_t first_position()
        uint64_t last_position()
    cdef cppclass Index "engine::RunIndex":
        Index(IdSeed seed, const uint8_t* first_ids, size_t count) except +
        uint32_t locate(const Id& id)
        const IdSeed& seed()
        size_t bytes()
    cdef cppclass Merger "engine::RunMerger":
        Merger(IdSeed seed, size_t inputs, uint64_t horizon) except +
        int64_t feed(size_t input, const uint8_t* blocks, size_t count) except +
        int64_t merge(vector[RunEntry]& out) except +

ENTRY_BYTES = 24
BLOCK_SIZE_BYTES = <int> BLOCK_BYTES
ENTRIES_PER_BLOCK = <int> BLOCK_ENTRIES


class DamagedBlockError(ValueError):
    """A block's checksum, number or count is wrong. `number` is the block's place in its run."""

    def __init__(self, number):
        self.number = number
        super().__init__(f"block {number} is damaged")


cdef IdSeed seed_of(bytes seed) except *:
    if len(seed) != 16:
        raise ValueError(f"seed: 16 bytes are needed, not {len(seed)}")
    return load_seed(<const uint8_t*> PyBytes_AS_STRING(seed))


cdef bytes bytes_of(const void* data, size_t size):
    return PyBytes_FromStringAndSize(<const char*> data, <Py_ssize_t> size) if size else b""


cdef class RunEncoder:
    """Turns sorted entries into the blocks, the block index and the filter of a run.

    Args:
      seed: 16 bytes; entries must come sorted by it.
      expected_keys: at least so many entries as will come, for the size of the filter.
      bits_per_key: of the filter; 16 lets about 0.13 % of absent keys through.
    """

    cdef Encoder* encoder

    def __cinit__(self, bytes seed, uint64_t expected_keys, uint32_t bits_per_key=16):
        self.encoder = new Encoder(seed_of(seed), expected_keys, bits_per_key)

    def __dealloc__(self):
        del self.encoder

    def encode(self, const uint8_t[::1] entries not None):
        """Add entries (24 bytes each: id, position); give the blocks that are complete by now."""
        cdef size_t count = <size_t> entries.shape[0] // 24
        cdef size_t i
        with nogil:
            for i in range(count):
                self.encoder.add(load_entry(&entries[0] + i * 24))
        return self._take()

    def finish(self):
        """Close the last block and give what was not given yet."""
        self.encoder.close_block()
        return self._take()

    cdef bytes _take(self):
        cdef size_t size = self.encoder.closed_bytes()
        cdef bytes taken = bytes_of(self.encoder.blocks().data(), size)
        self.encoder.drop(size)
        return taken

    @property
    def first_ids(self):
        """The block index: the first id of each block, 16 bytes each."""
        return bytes_of(self.encoder.first_ids().data(), self.encoder.first_ids().size() * 16)

    @property
    def filter(self):
        """The filter: blocks of 32 bytes."""
        return bytes_of(self.encoder.filter().data(), self.encoder.filter().size())

    @property
    def count(self):
        """Entries so far."""
        return self.encoder.count()

    @property
    def first_position(self):
        """The smallest position of an entry; 2**64 - 1 without entries."""
        return self.encoder.first_position()

    @property
    def last_position(self):
        """The largest position of an entry; 0 without entries."""
        return self.encoder.last_position()


cdef class RunIndex:
    """Says which block of a run may hold an id."""

    cdef Index* index

    def __cinit__(self, bytes seed, const uint8_t[::1] first_ids not None):
        cdef const uint8_t* start = &first_ids[0] if first_ids.shape[0] else NULL
        self.index = new Index(seed_of(seed), start, <size_t> first_ids.shape[0] // 16)

    def __dealloc__(self):
        del self.index

    def locate(self, const uint8_t[::1] ids not None):
        """The block number of each id (16 bytes each) as uint32; 2**32 - 1 = in no block."""
        cdef Py_ssize_t count = ids.shape[0] // 16
        cdef bytes numbers = PyBytes_FromStringAndSize(NULL, count * 4)
        cdef uint32_t* target = <uint32_t*> PyBytes_AS_STRING(numbers)
        cdef Py_ssize_t i
        with nogil:
            for i in range(count):
                target[i] = self.index.locate(load_id(&ids[0] + i * 16))
        return numbers

    def search(
        self, const uint8_t[::1] block not None, uint32_t number, const uint8_t[::1] ids not None,
        const int64_t[::1] wanted not None, uint64_t[::1] positions not None
    ):
        """Look for the ids numbered `wanted` in block `number`; write the position of those found to `positions`.

        Raises DamagedBlockError; then nothing was written.
        """
        cdef Py_ssize_t i
        cdef int64_t which
        cdef uint64_t found
        cdef RunKey key
        if <size_t> block.shape[0] != BLOCK_BYTES or not block_is_sound(&block[0], number):
            raise DamagedBlockError(number)
        for i in range(wanted.shape[0]):
            which = wanted[i]
            if not 0 <= which < ids.shape[0] // 16 or which >= positions.shape[0]:
                raise IndexError(f"there is no id {which}")
            key = run_key(load_id(&ids[0] + which * 16), self.index.seed())
            found = find_in_block(&block[0], key, self.index.seed())
            if found != <uint64_t> -1:
                positions[which] = found

    @property
    def size_bytes(self):
        """Memory of the index."""
        return self.index.bytes()


def entries_of(const uint8_t[::1] blocks not None, uint32_t first_number):
    """The entries (24 bytes each) of consecutive blocks from number `first_number` on. Raises DamagedBlockError."""
    cdef size_t count = <size_t> blocks.shape[0] // BLOCK_BYTES
    cdef size_t i
    cdef uint32_t entries
    cdef const uint8_t* block
    gathered = bytearray()
    for i in range(count):
        block = &blocks[0] + i * BLOCK_BYTES
        if not block_is_sound(block, first_number + <uint32_t> i):
            raise DamagedBlockError(first_number + i)
        memcpy(&entries, block + 8, 4)
        gathered += bytes_of(block + 16, entries * 24)
    return bytes(gathered)


cdef class RunMerger:
    """Merges runs, given oldest first in pieces of whole blocks, into one sorted stream of entries.

    An id keeps its last position; entries below `horizon` are left out.
    """

    cdef Merger* merger
    cdef Py_ssize_t inputs

    def __cinit__(self, bytes seed, Py_ssize_t inputs, uint64_t horizon=0):
        if inputs < 1:
            raise ValueError("there is nothing to merge")
        self.inputs = inputs
        self.merger = new Merger(seed_of(seed), <size_t> inputs, horizon)

    def __dealloc__(self):
        del self.merger

    def feed(self, Py_ssize_t number, const uint8_t[::1] blocks not None):
        """Give input `number` its next blocks; empty = it has ended. Raises DamagedBlockError."""
        cdef int64_t damaged
        cdef const uint8_t* start = &blocks[0] if blocks.shape[0] else NULL
        cdef size_t count = <size_t> blocks.shape[0] // BLOCK_BYTES
        if not 0 <= number < self.inputs:
            raise IndexError(f"there is no input {number}")
        with nogil:
            damaged = self.merger.feed(<size_t> number, start, count)
        if damaged >= 0:
            raise DamagedBlockError(damaged)

    def merge(self):
        """(entries merged by now, the input that must be fed next or -1 at the end). Feed every input once before."""
        cdef vector[RunEntry] out
        cdef int64_t starving
        with nogil:
            starving = self.merger.merge(out)
        return bytes_of(out.data(), out.size() * 24), starving

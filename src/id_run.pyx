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
    uint32_t block_count_of(const uint8_t* block)
    uint64_t find_in_block(const uint8_t* block, const RunKey& key, const IdSeed& seed)
    void add_block_to_filter(
        const uint8_t* block, const IdSeed& seed, uint32_t filter_blocks, uint32_t first_block, uint8_t* part,
        size_t part_bytes
    )
    uint32_t bloom_block_count(uint64_t keys, uint32_t bits_per_key)
    uint32_t crc32c(uint32_t seed, const uint8_t* data, size_t size)
    cdef cppclass Encoder "engine::RunEncoder":
        Encoder(IdSeed seed, uint8_t* filter, uint32_t filter_blocks) except +
        void add(const RunEntry& entry) except +
        void close_block()
        size_t closed_bytes()
        const vector[uint8_t]& blocks()
        void drop(size_t size) except +
        const vector[Id]& first_ids()
        uint64_t count()
        uint64_t first_position()
        uint64_t last_position()
    cdef struct BlockSpan "engine::RunIndex::Span":
        uint32_t first
        uint32_t stop
    cdef cppclass Index "engine::RunIndex":
        Index(IdSeed seed, const uint8_t* first_ids, size_t count, uint32_t prefix_bits) except +
        BlockSpan locate(uint64_t low, uint64_t high)
        const IdSeed& seed()
        size_t bytes()
    cdef cppclass Sorter "engine::IdSorter":
        Sorter(const uint8_t* ids, size_t count, uint64_t first, IdSeed seed, uint32_t parts) except +
        const vector[RunEntry]& sort(uint32_t part) except +
    cdef cppclass Merger "engine::RunMerger":
        Merger(IdSeed seed, size_t inputs, uint64_t horizon) except +
        int64_t feed(size_t input, const uint8_t* blocks, size_t count) except +
        int64_t merge(Encoder& out) except +

cdef extern from "<sys/mman.h>" nogil:
    int PROT_READ
    int PROT_WRITE
    int MAP_PRIVATE
    int MAP_ANONYMOUS
    void* MAP_FAILED
    void* mmap(void* address, size_t size, int protection, int flags, int descriptor, long offset)
    int munmap(void* address, size_t size)

cdef extern from "<algorithm>" namespace "std" nogil:
    void sort(vector[uint64_t].iterator first, vector[uint64_t].iterator last)

FILTER_BITS_PER_KEY = 16
FILTER_PAGE_BYTES = 4096
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


def filter_block_count(uint64_t keys):
    """Blocks (32 bytes) of a run's filter for so many keys: 16 bits a key let about 0.13 % of absent ones through."""
    return bloom_block_count(keys, FILTER_BITS_PER_KEY)


def page_checksums(const uint8_t[::1] pages not None):
    """CRC32C of each page (4 KiB, the last one may be shorter), as uint32."""
    cdef size_t size = <size_t> pages.shape[0]
    cdef size_t count = (size + 4095) // 4096
    cdef bytes checksums = PyBytes_FromStringAndSize(NULL, <Py_ssize_t> count * 4)
    cdef uint32_t* target = <uint32_t*> PyBytes_AS_STRING(checksums)
    cdef size_t i
    with nogil:
        for i in range(count):
            target[i] = crc32c(0, &pages[0] + i * 4096, 4096 if i + 1 < count else size - i * 4096)
    return checksums


cdef class RunSorter:
    """Sorts ids (16 bytes each) that were seen at the positions from `first` on, part by part of their hashes.

    Holds the ids, and four bytes for each beside them. Raises ValueError for parts below 1 and for 2**32 ids and more.
    """

    cdef Sorter* sorter
    cdef uint32_t parts
    cdef const uint8_t[::1] ids

    def __cinit__(self, bytes seed not None, const uint8_t[::1] ids not None, uint64_t first, uint32_t parts):
        cdef IdSeed secret = seed_of(seed)
        cdef const uint8_t* start = &ids[0] if ids.shape[0] else NULL
        cdef size_t count = <size_t> ids.shape[0] // 16
        if parts < 1 or count > 0xFFFFFFFF:
            raise ValueError(f"at least one part and fewer than 2**32 ids are needed, not {parts} and {count:,}")
        self.ids = ids
        self.parts = parts
        with nogil:
            self.sorter = new Sorter(start, count, first, secret, parts)

    def __dealloc__(self):
        del self.sorter

    def entries(self, uint32_t part):
        """Sorted 24-byte entries (id, position) of one part, each id once with its last position. IndexError."""
        if part >= self.parts:
            raise IndexError(f"there is no part {part} of {self.parts}")
        cdef const vector[RunEntry]* entries
        with nogil:
            entries = &self.sorter.sort(part)
        return bytes_of(entries.data(), entries.size() * 24)


cdef class FilterMemory:
    """Zeros for the blocks of one filter, straight from the system and given back to it at once: filters come and go by
    tens of megabytes, and malloc would keep their holes.
    """

    cdef uint8_t* data
    cdef Py_ssize_t size
    cdef Py_ssize_t shape[1]
    cdef Py_ssize_t strides[1]

    def __cinit__(self, Py_ssize_t size):
        if size < 1:
            raise ValueError(f"a filter of {size} bytes cannot be")
        cdef void* pages = mmap(NULL, <size_t> size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        if pages == MAP_FAILED:
            raise MemoryError()
        self.data = <uint8_t*> pages
        self.size = self.shape[0] = size
        self.strides[0] = 1

    def __dealloc__(self):
        if self.data != NULL:
            with nogil:
                munmap(self.data, <size_t> self.size)

    def __len__(self):
        return self.size

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        buffer.buf = self.data
        buffer.obj = self
        buffer.len = self.size
        buffer.itemsize = 1
        buffer.readonly = 0
        buffer.ndim = 1
        buffer.format = b"B"
        buffer.shape = self.shape
        buffer.strides = self.strides
        buffer.suboffsets = NULL
        buffer.internal = NULL


cdef class RunEncoder:
    """Turns sorted entries into the blocks, the block index and the filter of a run.

    Args:
      seed: 16 bytes; entries must come sorted by it.
      filter_keys: at least so many entries as will come; 0 = the filter is made later.
    """

    cdef Encoder* encoder
    cdef FilterMemory filter_

    def __cinit__(self, bytes seed, uint64_t filter_keys=0):
        cdef uint32_t blocks = bloom_block_count(filter_keys, FILTER_BITS_PER_KEY) if filter_keys else 0
        cdef uint8_t* filter_ = NULL
        if blocks:
            self.filter_ = FilterMemory(<Py_ssize_t> blocks * 32)
            filter_ = self.filter_.data
        self.encoder = new Encoder(seed_of(seed), filter_, blocks)

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
        """The filter's blocks of 32 bytes, or None. Ask only when all entries are there."""
        return self.filter_

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
    """Says which blocks of a run may hold an id, and finds it in them."""

    cdef Index* index

    def __cinit__(self, bytes seed, const uint8_t[::1] first_ids not None, *, uint32_t prefix_bits=32):
        cdef const uint8_t* start = &first_ids[0] if first_ids.shape[0] else NULL
        if not 1 <= prefix_bits <= 32:
            raise ValueError(f"prefix_bits must be 1 to 32, not {prefix_bits}")
        self.index = new Index(seed_of(seed), start, <size_t> first_ids.shape[0] // 16, prefix_bits)

    def __dealloc__(self):
        del self.index

    def plan(self, const uint8_t[::1] ids not None):
        """What `search` has to read: pairs of uint32 (block number, which id), ascending. An id has no pair where no
        block can hold it, and more than one where the index cannot tell the blocks apart.
        """
        cdef size_t count = <size_t> ids.shape[0] // 16
        cdef size_t i
        cdef uint32_t block
        cdef uint64_t hash_
        cdef BlockSpan span
        cdef vector[uint64_t] pairs
        with nogil:
            pairs.reserve(count)
            for i in range(count):
                hash_ = run_key(load_id(&ids[0] + i * 16), self.index.seed()).hash
                span = self.index.locate(hash_, hash_)
                for block in range(span.first, span.stop):
                    pairs.push_back(<uint64_t> block << 32 | i)
            sort(pairs.begin(), pairs.end())
            for i in range(pairs.size()):
                pairs[i] = pairs[i] >> 32 | pairs[i] << 32
        return bytes_of(pairs.data(), pairs.size() * 8)

    def search(
        self, const uint8_t[::1] blocks not None, const uint32_t[:, ::1] plan not None, const uint8_t[::1] ids not None,
        uint64_t[::1] positions not None
    ):
        """Look for ids as (part of) a `plan` says; write the position of those found to `positions`.

        `blocks` are the different blocks of that plan, in its order. Raises DamagedBlockError, IndexError; then nothing
        that was found may be believed.
        """
        cdef Py_ssize_t i
        cdef Py_ssize_t read = 0
        cdef uint32_t which
        cdef uint64_t found
        cdef RunKey key
        cdef const uint8_t* block = NULL
        for i in range(plan.shape[0]):
            if i == 0 or plan[i, 0] != plan[i - 1, 0]:
                read += 1
                if blocks.shape[0] < read * <Py_ssize_t> BLOCK_BYTES:
                    raise DamagedBlockError(plan[i, 0])
                block = &blocks[0] + (read - 1) * <Py_ssize_t> BLOCK_BYTES
                if not block_is_sound(block, plan[i, 0]):
                    raise DamagedBlockError(plan[i, 0])
            which = plan[i, 1]
            if which >= ids.shape[0] // 16 or which >= positions.shape[0]:
                raise IndexError(f"there is no id {which}")
            key = run_key(load_id(&ids[0] + <Py_ssize_t> which * 16), self.index.seed())
            found = find_in_block(block, key, self.index.seed())
            if found != <uint64_t> -1:
                positions[which] = found

    def blocks_behind(self, uint32_t first, uint32_t stop, uint32_t filter_blocks):
        """The blocks [first, stop) whose entries fill the blocks [first, stop) of a filter of so many blocks."""
        cdef uint64_t low = ((<uint64_t> first << 32) + filter_blocks - 1) // filter_blocks
        cdef uint64_t high = ((<uint64_t> stop << 32) + filter_blocks - 1) // filter_blocks
        cdef BlockSpan span = self.index.locate(low << 32, ((high << 32) - 1) if high < <uint64_t> 1 << 32 else <uint64_t> -1)
        return span.first, span.stop

    @property
    def size_bytes(self):
        """Memory of the index."""
        return self.index.bytes()


def first_ids_of(const uint8_t[::1] blocks not None, uint32_t first_number):
    """The first id of each of consecutive blocks from number `first_number` on, and how many entries they have in all.

    Raises DamagedBlockError.
    """
    cdef size_t count = <size_t> blocks.shape[0] // BLOCK_BYTES
    cdef size_t i
    cdef uint64_t entries = 0
    cdef const uint8_t* block
    cdef bytearray first_ids = bytearray(<Py_ssize_t> count * 16)
    cdef char* target = first_ids
    for i in range(count):
        block = &blocks[0] + i * BLOCK_BYTES
        if not block_is_sound(block, first_number + <uint32_t> i):
            raise DamagedBlockError(first_number + i)
        memcpy(target + i * 16, block + 16, 16)
        entries += block_count_of(block)
    return bytes(first_ids), entries


def add_to_filter(
    bytes seed not None, const uint8_t[::1] blocks not None, uint32_t first_number, uint32_t filter_blocks,
    uint32_t first_filter_block, uint8_t[::1] part not None
):
    """Add the entries of consecutive blocks to a part of a filter of `filter_blocks` blocks; what belongs to other parts
    is left out. Raises DamagedBlockError.
    """
    cdef IdSeed secret = seed_of(seed)
    cdef size_t count = <size_t> blocks.shape[0] // BLOCK_BYTES
    cdef size_t i
    cdef int64_t damaged = -1
    with nogil:
        for i in range(count):
            if not block_is_sound(&blocks[0] + i * BLOCK_BYTES, first_number + <uint32_t> i):
                damaged = <int64_t> (first_number + i)
                break
            add_block_to_filter(
                &blocks[0] + i * BLOCK_BYTES, secret, filter_blocks, first_filter_block, &part[0],
                <size_t> part.shape[0]
            )
    if damaged >= 0:
        raise DamagedBlockError(damaged)


cdef class RunMerger:
    """Merges runs, given in pieces of whole blocks, into an encoder.

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
        if blocks.shape[0] % BLOCK_BYTES:
            raise ValueError(f"blocks of {BLOCK_BYTES} bytes are needed, not {blocks.shape[0]} bytes")
        with nogil:
            damaged = self.merger.feed(<size_t> number, start, count)
        if damaged >= 0:
            raise DamagedBlockError(damaged)

    def merge(self, RunEncoder encoder not None):
        """(blocks complete by now, the input that must be fed next or -1 at the end). Feed every input once before."""
        cdef int64_t starving
        with nogil:
            starving = self.merger.merge(encoder.encoder[0])
        return encoder._take(), starving

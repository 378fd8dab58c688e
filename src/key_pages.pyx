"""The full keys of a window's rows: recent ones in pages, older ones in blocks that the caller writes and reads.

Laws: no I/O; every block is verified before a key in it is believed, and a damaged one raises `DamagedKeysError`; the
GIL is released in every loop over rows; one owner at a time. Algorithms and formats: `key_bytes.hpp`, `key_pages.hpp`,
`key_block.hpp`.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libcpp.vector cimport vector

from arrow_c cimport Batch, array_of, column_indices, export_array, parse_wanted, schema_of
from pool cimport import_pool


cdef extern from "key_block.hpp" namespace "engine" nogil:
    cdef cppclass KeyView:
        const uint8_t* data
        size_t size
        bint operator!=(const KeyView&)
    cdef cppclass Sighting:
        uint64_t position
        uint64_t previous
    cdef cppclass KeyedRows:
        KeyedRows()
        const uint8_t* keyed
        const uint8_t* selection
    cdef cppclass Pages "engine::KeyPages":
        Pages(uint64_t start, size_t page_bytes)
        uint64_t first()
        uint64_t tail()
        size_t bytes()
        KeyView at(uint64_t position)
        uint64_t bytes_between(uint64_t start, uint64_t stop)
        void append_rows "append"(const Batch& batch, const KeyedRows& wanted) except +
        void append_fixed(const uint8_t* keys, size_t size, int64_t rows, const KeyedRows& wanted) except +
        void truncate(uint64_t position)
        void release_below(uint64_t position)
        uint64_t first_within(size_t limit_bytes)
        uint64_t compare(const Sighting* sightings, size_t count, vector[uint32_t]& elsewhere) except +
    cdef cppclass KeyBlock:
        uint32_t keys
        uint32_t bytes
        uint32_t crc
    KeyBlock append_block(const Pages& pages, uint64_t start, uint64_t stop, vector[uint8_t]& blocks) except +
    void append_keys(Pages& pages, const KeyBlock& entry, const uint8_t* block) except +
    bint is_sound(const KeyBlock& entry, const uint8_t* block)
    KeyView key_in_block(const KeyBlock& entry, const uint8_t* block, uint32_t key)
    const uint64_t kNoDifference


import_pool()

TABLE_ENTRY_BYTES = sizeof(KeyBlock)


class DamagedKeysError(ValueError):
    """A block of keys is not what its table says. `number` is its place among those that were given."""

    def __init__(self, number):
        self.number = number
        super().__init__(f"block {number} of keys is damaged")


cdef KeyedRows _wanted(const uint8_t[::1] keyed, const uint8_t[::1] selection, int64_t rows) except *:
    cdef KeyedRows wanted
    wanted.keyed = wanted.selection = NULL
    if keyed is not None:
        if keyed.shape[0] < rows:
            raise ValueError(f"keyed: {rows} bytes are needed, the buffer has {keyed.shape[0]}")
        wanted.keyed = &keyed[0] if rows else NULL
    if selection is not None:
        if selection.shape[0] < rows:
            raise ValueError(f"selection: {rows} bytes are needed, the buffer has {selection.shape[0]}")
        wanted.selection = &selection[0] if rows else NULL
    return wanted


cdef class KeyPages:
    """The keys of consecutive positions, of which the last ones are here.

    Args:
      start: the position of the first key.
      page_bytes: bytes of keys that are taken from memory at once.
    """

    cdef Pages* pages

    def __cinit__(self, uint64_t start=0, size_t page_bytes=262144):
        if page_bytes < 1:
            raise ValueError("page_bytes must be above zero")
        self.pages = new Pages(start, page_bytes)

    def __dealloc__(self):
        del self.pages

    def append(self, batch, columns, *, const uint8_t[::1] keyed=None, const uint8_t[::1] selection=None):
        """Give the next positions to the keys of the rows that are keyed and selected (one byte a row, 0 = not).

        Rows with a null component must not be keyed. Raises as `hash.key_ids` does; MemoryError; then nothing was
        appended.
        """
        capsules = export_array(batch)
        cdef Batch parsed = parse_wanted(schema_of(capsules)[0], array_of(capsules)[0], column_indices(columns))
        cdef KeyedRows wanted = _wanted(keyed, selection, parsed.length)
        with nogil:
            self.pages.append_rows(parsed, wanted)

    def append_ids(self, const uint8_t[::1] ids not None, *, const uint8_t[::1] keyed=None,
                   const uint8_t[::1] selection=None):
        """As `append`, for keys that are their own ids: 16 bytes a row."""
        cdef int64_t rows = ids.shape[0] // 16
        cdef KeyedRows wanted = _wanted(keyed, selection, rows)
        if rows:
            with nogil:
                self.pages.append_fixed(&ids[0], 16, rows, wanted)

    def truncate(self, uint64_t position):
        """Take back the keys from `position` on."""
        self.pages.truncate(position)

    def release_below(self, uint64_t position):
        """Forget the keys below `position` and give their pages back."""
        self.pages.release_below(position)

    def first_within(self, size_t limit_bytes):
        """The position below which keys must go for the pages to take at most so many bytes."""
        return self.pages.first_within(limit_bytes)

    def key(self, uint64_t position):
        """The key at a position. Raises IndexError where it is not here."""
        self._check(position, position + 1)
        cdef KeyView key = self.pages.at(position)
        return PyBytes_FromStringAndSize(<const char*> key.data, <Py_ssize_t> key.size)

    def bytes_between(self, uint64_t start, uint64_t stop):
        """Bytes of the keys of the positions [start, stop). Raises IndexError."""
        self._check(start, stop)
        return self.pages.bytes_between(start, stop)

    def compare(self, const uint64_t[::1] sightings not None):
        """Hold keys against those at their previous sightings: pairs (position, previous).

        Gives the lowest position with another key than its previous one, or None, and the numbers (uint32) of the pairs
        whose previous keys are not here any more. Raises IndexError for a position that is not here.
        """
        cdef size_t count = <size_t> sightings.shape[0] // 2
        cdef vector[uint32_t] elsewhere
        cdef uint64_t differing = kNoDifference
        cdef size_t i
        for i in range(count):
            if not self.pages.first() <= sightings[2 * i] < self.pages.tail() or sightings[2 * i + 1] >= self.pages.tail():
                raise IndexError(f"position {sightings[2 * i]} or {sightings[2 * i + 1]} is not here")
        if count:
            with nogil:
                differing = self.pages.compare(<const Sighting*> &sightings[0], count, elsewhere)
        numbers = PyBytes_FromStringAndSize(<const char*> elsewhere.data(), <Py_ssize_t> elsewhere.size() * 4)
        return None if differing == kNoDifference else differing, numbers

    def compare_in_blocks(self, const uint64_t[::1] sightings not None, const uint32_t[::1] block_of not None,
                          const uint64_t[::1] firsts not None, const uint8_t[::1] table not None,
                          const uint8_t[::1] blocks not None):
        """As `compare`, where the previous keys lie in blocks: pair i in block `block_of[i]`, whose first key is that of
        position `firsts[block]`. Gives the lowest position that differs, or None.

        Raises DamagedKeysError, IndexError; then nothing may be believed.
        """
        cdef size_t pairs = <size_t> block_of.shape[0], count = <size_t> firsts.shape[0]
        cdef vector[size_t] starts
        cdef size_t i, total = 0, sound = 0
        cdef uint64_t lowest = kNoDifference
        cdef uint64_t key
        cdef const KeyBlock* entries = <const KeyBlock*> &table[0] if table.shape[0] else NULL
        if <size_t> sightings.shape[0] != 2 * pairs or <size_t> table.shape[0] != count * sizeof(KeyBlock):
            raise ValueError("a pair needs a block, and a block an entry in the table")
        for i in range(count):
            starts.push_back(total)
            total += entries[i].bytes
        if total != <size_t> blocks.shape[0]:
            raise ValueError(f"the table tells of {total} bytes of blocks, not of {blocks.shape[0]}")
        with nogil:
            while sound < count and is_sound(entries[sound], &blocks[0] + starts[sound]):
                sound += 1
        if sound < count:
            raise DamagedKeysError(sound)
        for i in range(pairs):
            if block_of[i] >= count or not self.pages.first() <= sightings[2 * i] < self.pages.tail():
                raise IndexError(f"pair {i} is not of these blocks and positions")
            key = sightings[2 * i + 1] - firsts[block_of[i]]
            if key >= entries[block_of[i]].keys:
                raise IndexError(f"position {sightings[2 * i + 1]} is not in block {block_of[i]}")
        with nogil:
            for i in range(pairs):
                key = sightings[2 * i + 1] - firsts[block_of[i]]
                if sightings[2 * i] < lowest and self.pages.at(sightings[2 * i]) != key_in_block(
                    entries[block_of[i]], &blocks[0] + starts[block_of[i]], <uint32_t> key
                ):
                    lowest = sightings[2 * i]
        return None if lowest == kNoDifference else lowest

    def encode(self, uint64_t start, uint64_t stop, size_t limit_bytes):
        """Blocks of the keys of [start, stop), at most about so many bytes of them: (the position behind the last one,
        the table, the blocks). Raises IndexError, MemoryError.
        """
        self._check(start, stop)
        cdef vector[uint8_t] blocks
        cdef vector[KeyBlock] table
        with nogil:
            while start < stop and blocks.size() < limit_bytes:
                table.push_back(append_block(self.pages[0], start, stop, blocks))
                start += table.back().keys
        return (
            start,
            PyBytes_FromStringAndSize(<const char*> table.data(), <Py_ssize_t> (table.size() * sizeof(KeyBlock))),
            PyBytes_FromStringAndSize(<const char*> blocks.data(), <Py_ssize_t> blocks.size()),
        )

    def load(self, const uint8_t[::1] table not None, const uint8_t[::1] blocks not None):
        """Append the keys of blocks that `encode` gave. Raises DamagedKeysError; then those before it were appended."""
        cdef size_t count = <size_t> table.shape[0] // sizeof(KeyBlock)
        cdef const KeyBlock* entries = <const KeyBlock*> &table[0] if count else NULL
        cdef size_t i, start = 0
        cdef const uint8_t* block
        for i in range(count):
            if start + entries[i].bytes > <size_t> blocks.shape[0] or entries[i].bytes == 0:
                raise DamagedKeysError(i)
            block = &blocks[0] + start
            if not is_sound(entries[i], block):
                raise DamagedKeysError(i)
            append_keys(self.pages[0], entries[i], block)
            start += entries[i].bytes

    cdef int _check(self, uint64_t start, uint64_t stop) except -1:
        if not self.pages.first() <= start <= stop <= self.pages.tail():
            raise IndexError(f"the keys of the positions {start} to {stop} are not here")
        return 0

    @property
    def first(self):
        """Keys from this position on are here."""
        return self.pages.first()

    @property
    def tail(self):
        """The position of the next key."""
        return self.pages.tail()

    @property
    def size_bytes(self):
        """Memory of the pages."""
        return self.pages.bytes()

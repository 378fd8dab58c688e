"""Hashes and identities of rows' keys; the formats are written in hash_value.hpp and key_ids.hpp.

Both are persisted: a change needs a new HASH_VERSION. Nothing is kept between calls, so every function is thread-safe.
"""

from libc.stdint cimport int64_t, uint8_t, uint64_t
from libcpp.string cimport string
from libcpp.vector cimport vector

from arrow_c cimport Batch, array_of, column_indices, export_array, parse_wanted, schema_of
from pool cimport import_pool, new_buffer, view_memory


cdef extern from "key_ids.hpp" namespace "engine" nogil:
    cppclass SimdLevel:
        pass

    cppclass HashLoops:
        pass

    string level_name(SimdLevel level)
    vector[SimdLevel] machine_levels()
    SimdLevel simd_level()
    HashLoops hash_loops_of(SimdLevel level)
    const int kHashVersion
    const int kIdBytes
    void c_hash_rows "engine::hash_rows"(const Batch& batch, uint64_t* hashes, const HashLoops& loops) except +
    const uint8_t* stored_ids(const Batch& batch)
    bint any_may_be_null(const Batch& batch)
    bint ids_are_keys(const Batch& batch)
    int64_t make_key_ids(const Batch& batch, const uint8_t* seed, uint8_t* ids, uint8_t* keyed) except +


import_pool()
HASH_VERSION = kHashVersion


cdef class KeyIds:
    """The identity of each row's key: what dedup compares.

    ids: a buffer of 16 bytes a row; read-only, and the batch's own memory, where the key column already has that form.
    keyed: a buffer of one byte a row, 0 where a component of the key is null (such a row is never a duplicate, and its
    id is all zeros); None when there is none. null_count: how many such rows there are. whole: whether every id is the
    key itself, by the columns' types alone.
    """

    cdef readonly object ids
    cdef readonly object keyed
    cdef readonly Py_ssize_t null_count
    cdef readonly bint whole

    def __init__(self, ids: object, keyed: object | None, null_count: int, whole: bool = False):
        self.ids = ids
        self.keyed = keyed
        self.null_count = null_count
        self.whole = whole

    def __len__(self):
        return len(self.ids) // kIdBytes


cdef SimdLevel _level_of(str level) except *:
    """The level of that name; the one that is used everywhere for None."""
    if level is None:
        return simd_level()
    for known in machine_levels():
        if level_name(known).decode() == level:
            return known
    raise ValueError(f"this machine has no level {level!r}: see engine._core.simd.levels()")


def hash_rows(batch: object, columns: object, level: str | None = None) -> object:
    """A buffer of one uint64 a row: the hash of the key made of these columns, in this order.

    `batch` is any object with `__arrow_c_array__` that holds a struct; `columns` are indices. Equal keys hash equally
    in every Arrow form. Raises ValueError for no column, for a type that cannot be a key (nested) and for a malformed
    batch, IndexError for a column that does not exist.

    `level` is one of `engine._core.simd.levels()`, to hold their codes against each other; the hashes are the same.
    """
    cdef HashLoops loops = hash_loops_of(_level_of(level))
    capsules = export_array(batch)
    cdef Batch parsed = parse_wanted(schema_of(capsules)[0], array_of(capsules)[0], column_indices(columns))
    cdef void* hashes = NULL
    buffer = new_buffer(parsed.length * sizeof(uint64_t), &hashes)
    with nogil:
        c_hash_rows(parsed, <uint64_t*>hashes, loops)
    return buffer


def key_ids(batch: object, columns: object, seed: bytes) -> KeyIds:
    """The identity of each row's key, under a secret seed of 16 bytes that must stay the same as long as ids are
    compared.

    Keys of up to 16 bytes are their own identity (see key_ids.hpp for which), all others get a 128-bit fingerprint.
    Raises ValueError for another length of seed and as `hash_rows` does.
    """
    if len(seed) != 16:
        raise ValueError(f"the seed of key ids must be 16 bytes, not {len(seed)}")
    capsules = export_array(batch)
    cdef Batch parsed = parse_wanted(schema_of(capsules)[0], array_of(capsules)[0], column_indices(columns))
    cdef const uint8_t* stored = NULL
    with nogil:
        stored = stored_ids(parsed)
    if stored is not NULL:
        return KeyIds(view_memory(stored, parsed.length * kIdBytes, capsules[1]), None, 0, True)
    cdef const uint8_t* secret = seed
    cdef void* ids = NULL
    cdef void* keyed = NULL
    cdef int64_t null_count = 0
    ids_buffer = new_buffer(parsed.length * kIdBytes, &ids)
    keyed_buffer = new_buffer(parsed.length, &keyed) if any_may_be_null(parsed) else None
    with nogil:
        null_count = make_key_ids(parsed, secret, <uint8_t*>ids, <uint8_t*>keyed)
    return KeyIds(ids_buffer, keyed_buffer if null_count else None, null_count, ids_are_keys(parsed))

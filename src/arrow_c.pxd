"""The Arrow border of every kernel: capsules in, parsed columns, capsules out. Inline functions only."""

from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid, PyCapsule_New
from libc.stdint cimport int32_t, int64_t, uint8_t
from libc.stdlib cimport free, malloc
from libcpp.vector cimport vector


cdef extern from "column.hpp":
    struct ArrowSchema:
        const char* format
        const char* name
        int64_t n_children
        ArrowSchema** children
        ArrowSchema* dictionary
        void (*release)(ArrowSchema*) noexcept nogil

    struct ArrowArray:
        int64_t length
        int64_t null_count
        int64_t offset
        int64_t n_buffers
        int64_t n_children
        ArrowArray** children
        ArrowArray* dictionary
        void (*release)(ArrowArray*) noexcept nogil


cdef extern from "column.hpp" namespace "engine":
    cppclass Kind:
        bint operator==(Kind)

    struct Type:
        Kind kind
        int32_t width_bytes

    cppclass Column:
        Type type
        int64_t length
        int64_t offset
        const uint8_t* values
        const ArrowSchema* schema
        ArrowArray* array
        bint may_have_nulls()
        bint is_null(int64_t row)

    cppclass Batch:
        int64_t length
        vector[Column] columns

    Type parse_type(const char* format)
    const char* kind_name(const Type& type)
    Type value_type(const Column& column)
    Batch parse_batch(const ArrowSchema& schema, const ArrowArray& array) except +
    Batch parse_wanted "engine::parse_batch"(
        const ArrowSchema& schema, const ArrowArray& array, const vector[int64_t]& indices
    ) except +
    void move_array(ArrowArray* source, ArrowArray* target)


cdef inline tuple export_array(object source):
    """The (schema, array) capsules of any object with `__arrow_c_array__`; they keep its buffers alive."""
    export = getattr(source, "__arrow_c_array__", None)
    if export is None:
        raise TypeError(f"an Arrow batch is needed, an object with __arrow_c_array__, not {type(source).__name__}")
    schema, array = export()
    return schema, array


cdef inline ArrowSchema* schema_of(object capsules) except NULL:
    return <ArrowSchema*>PyCapsule_GetPointer(capsules[0], "arrow_schema")


cdef inline ArrowArray* array_of(object capsules) except NULL:
    return <ArrowArray*>PyCapsule_GetPointer(capsules[1], "arrow_array")


cdef inline vector[int64_t] column_indices(object columns) except *:
    """The indices of key columns; ValueError when there is none."""
    cdef vector[int64_t] indices
    for column in columns:
        indices.push_back(column)
    if indices.empty():
        raise ValueError("at least one key column is needed")
    return indices


cdef inline void _drop_array_capsule(object capsule) noexcept:
    cdef ArrowArray* array = <ArrowArray*>PyCapsule_GetPointer(capsule, "arrow_array")
    if array.release is not NULL:
        array.release(array)
    free(array)


cdef inline object new_array_capsule(ArrowArray** array):
    """An empty (released) ArrowArray in a capsule, to be filled by a kernel and imported by pyarrow."""
    cdef ArrowArray* fresh = <ArrowArray*>malloc(sizeof(ArrowArray))
    if fresh is NULL:
        raise MemoryError("no memory for an Arrow array")
    fresh.release = NULL
    try:
        capsule = PyCapsule_New(fresh, "arrow_array", <void (*)(object) noexcept>_drop_array_capsule)
    except BaseException:
        free(fresh)
        raise
    array[0] = fresh
    return capsule

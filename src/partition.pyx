"""Partitioning of whole batches by key, and gathering of selected rows; algorithm and laws are in
partition_scatter.hpp.

Functions keep nothing between calls and a `Partitioner` only an empty batch, so all of this may be called from any
thread. The output's memory comes from the pool and goes back to it when the last slice of the output is gone.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t
from libcpp cimport bool as bool_t
from libcpp.vector cimport vector

import pyarrow

from arrow_c cimport (
    ArrowArray,
    ArrowSchema,
    Batch,
    Column,
    array_of,
    column_indices,
    export_array,
    new_array_capsule,
    parse_batch,
    parse_wanted,
    schema_of,
)
from pool cimport import_pool, new_buffer


cdef extern from "partition_scatter.hpp" namespace "engine" nogil:
    const int kMaxPartitions
    cppclass Plan:
        int64_t count
        bool_t all_wanted
        vector[int64_t] starts

    cppclass Input:
        int64_t length
        const uint8_t* selection

    cppclass Inputs:
        vector[Batch] batches
        vector[Batch] keys
        vector[Input] selected
        void add(const ArrowSchema& schema, const ArrowArray& array, const uint8_t* selection) except +
        void add_keys(const ArrowSchema& schema, const ArrowArray& array, const vector[int64_t]& indices) except +

    bool_t joins(const ArrowSchema& schema)
    Plan plan_gather(const vector[Input]& inputs) except +
    Plan plan_partition(const vector[Batch]& keys, const vector[Input]& inputs, uint32_t partitions) except +
    int only_partition(const Plan& plan)
    void invert_plan(const Plan& plan, int64_t* indices)
    void c_key_groups "engine::key_groups"(const Batch& batch, uint16_t* groups) except +
    int64_t c_combine_selection "engine::combine_selection"(
        const uint8_t* selection, const Column& mask, uint8_t* wanted
    )
    void scatter_inputs(
        const Inputs& inputs, const Plan& plan, const vector[ArrowArray*]& taken, ArrowArray* out
    ) except +


cdef extern from "column.hpp" namespace "engine":
    bool_t is_nested "engine::is_nested"(const Column& column)
    bool_t is_boolean "engine::is_boolean"(const Column& column)
    Column parse_column(const ArrowSchema& schema, ArrowArray& array, int64_t offset, int64_t length) except +


import_pool()


cdef object _record_batch(object batch):
    """The batch as a pyarrow.RecordBatch; a struct's own nulls and offset move to its children."""
    if isinstance(batch, pyarrow.RecordBatch):
        return batch
    # pyarrow takes a sound structure for granted, and dies of one that is not.
    capsules = export_array(batch)
    parse_batch(schema_of(capsules)[0], array_of(capsules)[0])
    array = pyarrow.Array._import_from_c_capsule(*capsules)
    schema = pyarrow.schema([array.type.field(index) for index in range(array.type.num_fields)])
    if not schema.names:
        return pyarrow.RecordBatch.from_struct_array(array)
    columns = [array.field(index) for index in range(len(schema))]
    if array.null_count:
        missing = array.is_null()
        columns = [_masked(column, missing) for column in columns]
    return pyarrow.RecordBatch.from_arrays(columns, schema=schema)


cdef object _masked(object column, object missing):
    """A struct's child with the struct's nulls; pyarrow's `flatten` aborts on types that have no validity bitmap."""
    import pyarrow.compute

    if pyarrow.types.is_union(column.type):
        raise ValueError(f"a column of type {column.type} cannot take over the nulls of its struct")
    if not pyarrow.types.is_run_end_encoded(column.type):
        return pyarrow.StructArray.from_arrays([column], ["column"], mask=missing).flatten()[0]
    values = pyarrow.compute.run_end_decode(column)
    kept = pyarrow.compute.if_else(missing, pyarrow.scalar(None, values.type), values)
    return pyarrow.compute.run_end_encode(kept, run_end_type=column.type.run_end_type)


cdef class _Selection:
    """A selection's bytes, held for one call: `wanted` is NULL for all rows."""

    cdef const uint8_t* wanted
    cdef Py_buffer _view
    cdef bint _held

    def __cinit__(self, object selection, Py_ssize_t length):
        self.wanted = NULL
        self._held = False
        if selection is None:
            return
        PyObject_GetBuffer(selection, &self._view, PyBUF_SIMPLE)
        self._held = True
        if self._view.len != length:
            raise ValueError(f"a selection must have one byte a row: {self._view.len} bytes for {length} rows")
        # An empty buffer may have no address, which would mean all rows: of none, that is the same.
        self.wanted = <const uint8_t*>self._view.buf

    def __dealloc__(self):
        if self._held:
            PyBuffer_Release(&self._view)


cdef object _plan_indices(const Plan& plan):
    """The input row of each output row, as an Arrow array for `take`."""
    cdef void* indices = NULL
    buffer = new_buffer(plan.count * sizeof(int64_t), &indices)
    invert_plan(plan, <int64_t*>indices)
    return pyarrow.Array.from_buffers(pyarrow.int64(), plan.count, [None, pyarrow.py_buffer(buffer)])


cdef class _Batches:
    """Batches that are split or gathered together, parsed and held for one call."""

    cdef Inputs inputs
    cdef list batches
    cdef list held

    def __cinit__(self, object batches, object selections, object columns):
        cdef vector[int64_t] indices
        cdef _Selection selected
        if columns is not None:
            indices = column_indices(columns)
        self.batches = [_record_batch(batch) for batch in batches]
        if not self.batches:
            raise ValueError("at least one batch is needed")
        self.held = []
        for batch, selection in zip(self.batches, selections, strict=True):
            selected = _Selection(selection, batch.num_rows)
            # Exported afresh: dictionaries and text are moved into the output.
            capsules = export_array(batch)
            self.held.append((capsules, selected))
            self.inputs.add(schema_of(capsules)[0], array_of(capsules)[0], selected.wanted)
            if columns is not None:
                self.inputs.add_keys(schema_of(capsules)[0], array_of(capsules)[0], indices)

    cdef object scatter(self, const Plan& plan):
        """A new RecordBatch of the plan's rows, in the plan's order, with the schema of the first batch."""
        cdef vector[ArrowArray*] taken
        cdef size_t index
        cdef ArrowArray* out = NULL
        first = self.batches[0]
        indices = None
        kept = []
        for index in range(self.inputs.batches[0].columns.size()):
            if is_nested(self.inputs.batches[0].columns[index]):
                indices = _plan_indices(plan) if indices is None else indices
                exported = take(first.column(index), indices).__arrow_c_array__()
                kept.append(exported)
                taken.push_back(array_of(exported))
        result = new_array_capsule(&out)
        with nogil:
            scatter_inputs(self.inputs, plan, taken, out)
        # With the schema itself, not a description of it: half the time, and extension types need no registration.
        return pyarrow.RecordBatch._import_from_c(<size_t>out, first.schema)


cdef class Partitioner:
    """Splits batches by the hash of their key columns: partition = key_group * partitions >> 15.

    columns: indices of the key columns, at least one. partitions: 1 to 1,024. Raises ValueError for anything else.
    """

    cdef readonly tuple columns
    cdef readonly int partitions
    cdef dict _empty

    def __init__(self, columns: object, partitions: int):
        if not 1 <= partitions <= kMaxPartitions:
            raise ValueError(f"partitions must be 1 to {kMaxPartitions}, not {partitions}")
        self.columns = tuple(columns)
        self.partitions = partitions
        self._empty = {}
        column_indices(self.columns)

    def partition(self, batch: object, selection: object = None) -> list[object]:
        """One pyarrow.RecordBatch a partition, by index: its rows in input order, with the input's schema and metadata.

        `selection` is a buffer of one byte a row (0: leave the row out) or None. The batches are slices of one new
        batch; when every row goes to one partition and none is left out, that one is the input itself. Raises
        ValueError for a type that cannot be a key and a selection of another length, IndexError for a key column that
        does not exist.
        """
        return self.partition_all([batch], [selection])

    def partition_all(self, batches: object, selections: object) -> list[object]:
        """As `partition`, for batches of one schema, each with its selection: in each partition the rows of the first
        batch come first. Raises ValueError for several batches with columns that do not join (see `joinable`).
        """
        cdef _Batches held = _Batches(batches, selections, self.columns)
        cdef Plan plan
        cdef int only
        cdef uint32_t partitions = self.partitions
        with nogil:
            plan = plan_partition(held.inputs.keys, held.inputs.selected, partitions)
            only = only_partition(plan)
        if only >= 0 and plan.all_wanted and len(held.batches) == 1:
            return self._cut(plan, held.batches[0])
        return self._cut(plan, held.scatter(plan))

    cdef list _cut(self, const Plan& plan, object ordered):
        cdef int64_t start, count
        cdef int index
        empty = None
        slice_of = ordered.slice
        cut = []
        for index in range(self.partitions):
            start = plan.starts[index]
            count = plan.starts[index + 1] - start
            if count and count == plan.count:
                cut.append(ordered)
            elif count:
                cut.append(slice_of(start, count))
            else:
                empty = self._empty_batch(ordered.schema) if empty is None else empty
                cut.append(empty)
        return cut

    cdef object _empty_batch(self, object schema):
        """A batch of no rows that holds on to no other batch's memory; the last one made, where it fits."""
        empty = self._empty.get("batch")
        if empty is None or not empty.schema.equals(schema, check_metadata=True):
            columns = [pyarrow.nulls(0, type) for type in schema.types]  # a schema's empty table lacks unions
            empty = self._empty["batch"] = pyarrow.RecordBatch.from_arrays(columns, schema=schema)
        return empty


def gather(batch: object, selection: object) -> object:
    """The wanted rows of a batch as a new pyarrow.RecordBatch with the same schema; the batch itself when all are
    wanted.

    `selection` is a buffer of one byte a row (0: not wanted) or None for all. Raises ValueError for another length.
    """
    return gather_all([batch], [selection])


def gather_all(batches: object, selections: object) -> object:
    """As `gather`, the wanted rows of several batches of one schema one behind the other. Raises ValueError for several
    batches with columns that do not join (see `joinable`)."""
    cdef _Batches held = _Batches(batches, selections, None)
    cdef Plan plan
    with nogil:
        plan = plan_gather(held.inputs.selected)
    return held.batches[0] if plan.all_wanted and len(held.batches) == 1 else held.scatter(plan)


def take(column: object, indices: object) -> object:
    """The rows of a pyarrow Array or ChunkedArray of any type, by index; what pyarrow cannot take is decoded for it and
    encoded again. Raises pyarrow.ArrowNotImplementedError for run ends below other types and views in lists of views.
    """
    import pyarrow.compute

    if pyarrow.types.is_run_end_encoded(column.type):
        taken = take(pyarrow.compute.run_end_decode(column), indices)
        return pyarrow.compute.run_end_encode(taken, run_end_type=column.type.run_end_type)
    plain = without_views(column.type)
    if plain == column.type:
        return column.take(indices)
    return column.cast(plain).take(indices).cast(column.type)


def without_views(type: object) -> object:
    """The type with text and bytes in the place of views of them, at every depth."""
    types = pyarrow.types
    if types.is_string_view(type):
        return pyarrow.string()
    if types.is_binary_view(type):
        return pyarrow.binary()
    if types.is_dictionary(type):
        return pyarrow.dictionary(type.index_type, without_views(type.value_type), type.ordered)
    if types.is_struct(type):
        return pyarrow.struct([_without_views(field) for field in type])
    if types.is_map(type):
        return pyarrow.map_(_without_views(type.key_field), _without_views(type.item_field), type.keys_sorted)
    if types.is_fixed_size_list(type):
        return pyarrow.list_(_without_views(type.value_field), type.list_size)
    for is_list, make in (
        (types.is_list, pyarrow.list_),
        (types.is_large_list, pyarrow.large_list),
        (types.is_list_view, pyarrow.list_view),
        (types.is_large_list_view, pyarrow.large_list_view),
    ):
        if is_list(type):
            return make(_without_views(type.value_field))
    return type


cdef object _without_views(object field):
    return field.with_type(without_views(field.type))


def joinable(schema: object) -> bool:
    """Whether rows of several batches of this schema can go to one output: not with dictionaries, views or nested
    columns, which point into something of their own batch."""
    capsule = schema.__arrow_c_schema__()
    cdef ArrowSchema* exported = <ArrowSchema*>PyCapsule_GetPointer(capsule, "arrow_schema")
    cdef int64_t index
    for index in range(exported.n_children):
        if not joins(exported.children[index][0]):
            return False
    return True


def key_groups(batch: object, columns: object) -> object:
    """A buffer of one uint16 a row: the key group (0 to 32,767) of the key made of these columns. Raises as
    `hash_rows`."""
    capsules = export_array(batch)
    cdef Batch parsed = parse_wanted(schema_of(capsules)[0], array_of(capsules)[0], column_indices(columns))
    cdef void* groups = NULL
    buffer = new_buffer(parsed.length * sizeof(uint16_t), &groups)
    with nogil:
        c_key_groups(parsed, <uint16_t*>groups)
    return buffer


def combine_selection(selection: object, mask: object, length: int) -> tuple[object, int]:
    """A new selection (one byte a row) and its number of wanted rows: wanted before, and true in `mask`; null is not
    wanted.

    `mask` is an Arrow boolean array of `length` rows. Raises ValueError for another type or length.
    """
    cdef int64_t rows = length
    cdef int64_t count
    cdef void* wanted = NULL
    cdef _Selection selected = _Selection(selection, rows)
    capsules = export_array(mask)
    cdef Column column = parse_column(schema_of(capsules)[0], array_of(capsules)[0], 0, array_of(capsules).length)
    if not is_boolean(column) or column.length != rows:
        given = f"{column.length} values of Arrow format {column.schema.format.decode()!r}"
        raise ValueError(f"a mask must be {rows} booleans, not {given}")
    buffer = new_buffer(rows, &wanted)
    with nogil:
        count = c_combine_selection(selected.wanted, column, <uint8_t*>wanted)
    return buffer, count

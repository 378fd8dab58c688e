"""What kernels see of Arrow data: the kinds of a schema's columns, and the parsed shape of a batch.

Parsing itself is in column.hpp and is shared by all kernels; here it is made visible for validation before a run and
for tests.
"""

from libcpp.vector cimport vector

from arrow_c cimport (
    ArrowSchema,
    Batch,
    Column,
    PyCapsule_GetPointer,
    Type,
    array_of,
    export_array,
    kind_name,
    parse_batch,
    parse_type,
    schema_of,
    value_type,
)


cdef str _kind_of(const ArrowSchema* field):
    cdef const ArrowSchema* values = field if field.dictionary is NULL else field.dictionary
    cdef Type type = parse_type(values.format)
    if type.width_bytes < 0:
        raise ValueError(f"the Arrow format {values.format.decode()!r} is not known, or its width is malformed")
    return kind_name(type).decode()


def kinds(schema: object) -> list[str]:
    """The kind of each column's values: "null", "boolean", "signed integer", "unsigned integer", "floating point",
    "decimal", "fixed-size binary", "bytes" (text and binary in every form) or "nested". All but "nested" may be keys.

    `schema` is any object with `__arrow_c_schema__` that describes a struct. TypeError and ValueError for anything
    else.
    """
    export = getattr(schema, "__arrow_c_schema__", None)
    if export is None:
        raise TypeError(f"an Arrow schema is needed, an object with __arrow_c_schema__, not {type(schema).__name__}")
    capsule = export()
    cdef ArrowSchema* root = <ArrowSchema*>PyCapsule_GetPointer(capsule, "arrow_schema")
    if root.format != b"+s":
        raise ValueError(f"the schema of a batch must be an Arrow struct, not of format {root.format.decode()!r}")
    return [_kind_of(root.children[index]) for index in range(root.n_children)]


def describe(batch: object) -> list[dict[str, object]]:
    """The columns of a batch as kernels parse them: name, kind, length, offset, nulls (a count over this batch's rows).

    Raises ValueError, naming column and type, when the batch is malformed.
    """
    capsules = export_array(batch)
    cdef Batch parsed = parse_batch(schema_of(capsules)[0], array_of(capsules)[0])
    cdef size_t index
    cdef Py_ssize_t row
    cdef Column* column
    found = []
    for index in range(parsed.columns.size()):
        column = &parsed.columns[index]
        kind = kind_name(value_type(column[0])).decode()
        nulls = column.length if kind == "null" else sum([column.is_null(row) for row in range(column.length)])
        found.append(
            {
                "name": column.schema.name.decode() if column.schema.name is not NULL else "",
                "kind": kind,
                "length": column.length,
                "offset": column.offset,
                "nulls": nulls,
            }
        )
    return found

"""What kernels see of Arrow data."""

from typing import Protocol, TypedDict, type_check_only

@type_check_only
class ArrowArrayExporter(Protocol):
    """Any object that gives an Arrow array through the PyCapsule protocol: for a batch, a struct."""

    def __arrow_c_array__(self, requested_schema: object | None = None) -> tuple[object, object]: ...

@type_check_only
class ArrowSchemaExporter(Protocol):
    """Any object that gives an Arrow schema through the PyCapsule protocol."""

    def __arrow_c_schema__(self) -> object: ...

@type_check_only
class ColumnShape(TypedDict):
    """A column as kernels parse it; `nulls` counts this batch's rows."""

    name: str
    kind: str
    length: int
    offset: int
    nulls: int

def kinds(schema: ArrowSchemaExporter) -> list[str]:
    """The kind of each column's values; all but "nested" may be keys. TypeError, ValueError."""

def describe(batch: ArrowArrayExporter) -> list[ColumnShape]:
    """The columns of a batch as kernels parse them. ValueError names the column and type that is malformed."""

"""How the columns of one file or stream become the columns of its source.

Laws
    - Columns are matched by name, never by position.
    - Without a declared schema, types must be equal; metadata, nullability and the order of columns may differ.
    - With a declared schema, a column is cast only where casting it back gives the same values; text is parsed instead,
      and only where it fits. Columns that the schema does not name are not read; one that it names must be there.
    - A schema that was found, not declared, is nullable and without metadata of its own: a later file may have nulls.
"""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from engine.errors import InputError, PipelineError, missing_column

__all__ = [
    "Fit",
    "cast_without_loss",
    "check_columns",
    "declared_schema",
    "drift",
    "drift_error",
    "found_schema",
    "parts",
]

SHOWN = 3
"""How many differences one message tells."""

COLUMNS_MAX = 16_384
NESTING_MAX = 64


def declared_schema(schema: Any) -> pa.Schema | None:
    """What a user gave as ``schema=``: a schema, or whatever pyarrow makes one of. Raises PipelineError."""
    if schema is None:
        return None
    try:
        declared = schema if isinstance(schema, pa.Schema) else pa.schema(schema)
    except (TypeError, ValueError, pa.ArrowException) as error:
        found = type(schema).__name__
        raise PipelineError(f"read: schema= must be a pyarrow.Schema, found {found}: {error}") from error
    twice = _repeated(declared)
    if twice is not None:
        raise PipelineError(f'read: schema= names the column "{twice}" twice')
    return declared


def found_schema(schema: pa.Schema, location: str) -> pa.Schema:
    """The schema of a file as that of a source's rows. Raises InputError where its columns cannot be told apart."""
    check_columns(schema, location)
    return pa.schema([field.with_nullable(True) for field in schema])


def check_columns(schema: pa.Schema, location: str) -> None:
    """Raise InputError where columns cannot be told apart or read, or are more or deeper than is reasonable."""
    twice = _repeated(schema)
    if twice is not None:
        raise InputError(f'{location}: has two columns "{twice}".\n  Columns are matched by name: rename one of them.')
    if len(schema) > COLUMNS_MAX:
        raise InputError(f"{location}: has {len(schema):,} columns; at most {COLUMNS_MAX:,} are read.")
    for field in schema:
        try:
            nesting = _nesting(field.type)
        except UnicodeDecodeError as error:
            raise InputError(
                f'{location}: in the type of "{field.name}", a name or a time zone is no UTF-8: {error}.\n'
                "  Nothing from it was committed. Write it again."
            ) from error
        if nesting > NESTING_MAX:
            raise InputError(f'{location}: "{field.name}" is nested more than {NESTING_MAX} deep.')


def _repeated(schema: pa.Schema) -> str | None:
    seen: set[str] = set()
    for name in schema.names:
        if name in seen:
            return str(name)
        seen.add(name)
    return None


def _nesting(type: pa.DataType) -> int:
    """How deep a type is nested. Raises UnicodeDecodeError where a text in it cannot be read."""
    deepest, level = 0, [type]
    while level and deepest <= NESTING_MAX:
        for each in level:
            _texts(each)
        level = [part for each in level for part in parts(each)]
        deepest += 1
    return deepest


def parts(type: pa.DataType) -> list[pa.DataType]:
    """The types that a type is made of, one level below."""
    if isinstance(type, pa.BaseExtensionType):
        return [type.storage_type]
    if pa.types.is_dictionary(type):
        return [type.value_type]
    return [type.field(index).type for index in range(type.num_fields)]


def _texts(type: pa.DataType) -> list[str]:
    """The names of a type's fields, or its time zone: pyarrow reads them when asked. Raises UnicodeDecodeError."""
    if pa.types.is_timestamp(type):
        return [type.tz or ""]
    return [type.field(index).name for index in range(type.num_fields)]


def drift(found: pa.Schema, expected: pa.Schema) -> list[str]:
    """In which ways ``found`` is not what earlier files were, as phrases; none where it is the same."""
    phrases = []
    for field in expected:
        if field.name not in found.names:
            phrases.append(f'has no column "{field.name}"; earlier files have it ({_shown(field.type)})')
        elif not _same(found.field(field.name).type, field.type):
            other = found.field(field.name).type
            phrases.append(f'"{field.name}" is {_shown(other)}; earlier files have {_shown(field.type)}')
    unknown = [field for field in found if field.name not in expected.names]
    return phrases + [f'has a column "{field.name}" ({_shown(field.type)}); earlier files do not' for field in unknown]


def drift_error(location: str, phrases: list[str]) -> InputError:
    """The error for a file that is not like earlier ones, found before any of its rows was read."""
    more = [f"and {len(phrases) - SHOWN} more differences"] if len(phrases) > SHOWN else []
    told = "; ".join([*phrases[:SHOWN], *more]) if len(phrases) > 1 else phrases[0]
    return InputError(f"{location}: {told}.\n  Nothing from it was committed. Fix the file or pass schema=.")


def _shown(type: pa.DataType) -> str:
    text = str(type)
    return text if len(text) <= 80 else text[:79] + "…"


def _same(one: pa.DataType, other: pa.DataType) -> bool:
    """Equal but for nullability, metadata and the names of list items, at every depth."""
    if one.equals(other):
        return True
    if one.id != other.id or one.num_fields != other.num_fields or not one.num_fields or pa.types.is_dictionary(one):
        return False
    if pa.types.is_fixed_size_list(one) and getattr(one, "list_size", 0) != getattr(other, "list_size", 0):
        return False
    named = pa.types.is_struct(one) or pa.types.is_union(one)
    pairs = [(one.field(index), other.field(index)) for index in range(one.num_fields)]
    return all((not named or a.name == b.name) and _same(a.type, b.type) for a, b in pairs)


class Fit:
    """Brings batches with the schema of one file to the schema of its source.

    ``constants`` are columns that the file does not hold (of Hive directories). Raises InputError where the schemas
    cannot meet; nothing was read then.
    """

    def __init__(
        self,
        found: pa.Schema,
        expected: pa.Schema,
        location: str,
        *,
        declared: bool,
        constants: Mapping[str, Any] | None = None,
    ) -> None:
        self.expected = expected
        self._location = location
        self._constants = {n: value for n, value in (constants or {}).items() if n not in found.names}
        added = [pa.field(name, value.type) for name, value in self._constants.items()]
        whole = pa.schema([*found_schema(found, location), *added])
        phrases = _undeclared(whole, expected) if declared else drift(whole, expected)
        if phrases and declared:
            raise InputError(f"{location}: {phrases[0]}.\n  Nothing from it was committed. Fix the file or schema=.")
        if phrases:
            raise drift_error(location, phrases)
        self._plain = not self._constants and found.names == expected.names and found.types == expected.types
        self._required = [index for index, field in enumerate(expected) if not field.nullable]

    def apply(self, rows: pa.RecordBatch, start: int) -> pa.RecordBatch:
        """The batch in the source's schema. ``start`` is the first row's number in the file. Raises InputError."""
        if self._plain and not self._required and rows.schema.equals(self.expected, check_metadata=True):
            return rows
        columns = rows.columns if self._plain else [self._column(rows, field, start) for field in self.expected]
        for index in self._required:
            if columns[index].null_count:
                raise InputError(
                    f'{self._where(rows, start)}: "{self.expected.field(index).name}" has nulls, '
                    "but is declared not null.\n  Fix the rows or pass schema=."
                )
        if not columns:
            return rows.replace_schema_metadata(None)
        return pa.RecordBatch.from_arrays(columns, schema=self.expected)

    def _column(self, rows: pa.RecordBatch, field: "pa.Field[Any]", start: int) -> "pa.Array[Any]":
        constant = self._constants.get(field.name)
        column = pa.repeat(constant, rows.num_rows) if constant is not None else rows.column(field.name)
        if column.type.equals(field.type):
            return column
        try:
            if _same(column.type, field.type):
                return column.cast(field.type)
            return cast_without_loss(column, field.type)
        except (pa.ArrowException, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise InputError(
                f'{self._where(rows, start)}: "{field.name}" is {_shown(column.type)} and does not fit '
                f"{_shown(field.type)} without loss ({reason}).\n  Fix the file or schema=."
            ) from error

    def _where(self, rows: pa.RecordBatch, start: int) -> str:
        return f"{self._location} rows {start:,}-{start + rows.num_rows:,}"


def _undeclared(found: pa.Schema, expected: pa.Schema) -> list[str]:
    """In which ways a declared schema cannot be had from what was found."""
    phrases = []
    for field in expected:
        if field.name not in found.names:
            phrases.append(missing_column(field.name, found.names).rstrip("."))
            continue
        other = found.field(field.name).type
        try:
            pa.nulls(0, other).cast(field.type)
        except (pa.ArrowException, ValueError):
            phrases.append(f'"{field.name}" is {_shown(other)}; schema= says {_shown(field.type)}')
    return phrases


def cast_without_loss(column: "pa.Array[Any]", type: pa.DataType) -> "pa.Array[Any]":
    """The same values in another type. Raises ArrowInvalid where one of them does not fit."""
    converted = column.cast(type, safe=True)
    if _is_text(column.type) and not _is_text(type):
        return converted
    try:
        back = converted.cast(column.type, safe=True)
    except pa.ArrowNotImplementedError:
        return converted
    if not _equal(back, column):
        raise pa.ArrowInvalid("some values would change")
    return converted


def _is_text(type: pa.DataType) -> bool:
    inner = type.value_type if pa.types.is_dictionary(type) else type
    return any(test(inner) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def _equal(one: "pa.Array[Any]", other: "pa.Array[Any]") -> bool:
    if one.equals(other):
        return True
    if not pa.types.is_floating(one.type) or one.null_count != other.null_count:
        return False
    same = pc.or_(pc.equal(one, other), pc.and_(pc.is_nan(one), pc.is_nan(other)))
    return bool(pc.all(same).as_py() is not False)

"""Newline-delimited JSON files as a source: one object a line.

Laws
    - Types are those of ``schema=``, or of the first block of the first file that has rows: never of the file at hand.
    - A name that a line lacks is null there. Without ``schema`` a name that is not in the first block is an error, not
      lost; with it, names that it does not hold are not read.
    - Seeking reads the file from its beginning and drops rows. Memory: one block and the batch that was made of it.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa
import pyarrow.json as pa_json

from engine.errors import InputError
from engine.sources.file_listing import FileSet, InputFile, PathArgument
from engine.sources.file_source import FileSource
from engine.sources.row_schema import declared_schema, drift, drift_error, found_schema
from engine.sources.text_input import check_text, open_text
from engine.storage import open_input

__all__ = ["NdjsonSource", "ndjson"]

BLOCK_BYTES = 4 << 20
LINE_BYTES_MAX = 64 << 20


def ndjson(path: PathArgument, *, schema: pa.Schema | None = None) -> "NdjsonSource":
    """Read newline-delimited JSON: a file, a directory with all below it (.ndjson, .jsonl; also .gz
    and .zst), a pattern, or several of these.

    Files are read in the order of their paths below the directory; files that appear later come after all that were
    read. Without ``schema`` the types are those of the first 4 MiB of the first file; numbers, text, booleans,
    timestamps, objects and lists are told apart (whole numbers beyond int64 become doubles). Replayable. Raises
    PipelineError; reading raises InputError and SourceError.
    """
    names = tuple(f"{name}{packed}" for name in (".ndjson", ".jsonl") for packed in ("", ".gz", ".zst"))
    return NdjsonSource(FileSet.of(path, names), declared_schema(schema))


@dataclass(frozen=True, slots=True)
class NdjsonSource(FileSource):
    """Rows of newline-delimited JSON files."""

    kind: ClassVar[str] = "ndjson"
    title: ClassVar[str] = "newline-delimited JSON"

    def expected(self, file: InputFile, files: Sequence[InputFile]) -> pa.Schema | None:
        """The types of the first block; None where the file has no rows and is not the last hope."""
        schema = FileSource.expected(self, file, files)
        return schema if schema is not None and len(schema) else None

    def open_file(self, file: InputFile, expected: pa.Schema | None) -> "_OpenNdjson":
        """Read the first block, in the expected types."""
        return _OpenNdjson(file, expected, declared=self.declared is not None)


class _OpenNdjson:
    """One file while it is read. The first block is parsed at once: its fault is then found before any row is given."""

    def __init__(self, file: InputFile, expected: pa.Schema | None, *, declared: bool) -> None:
        with open_input(file.path) as handle:
            check_text(handle, file, "newline-delimited JSON")
        self._file = file
        self._declared = declared
        self._line = 1
        self._stream = open_text(file)
        self.row_count: int | None = None
        try:
            self._blocks = _blocks(self._stream)
            self._first = next(self._blocks, b"")
            if expected is None:
                self.schema = _infer(self._first)
            else:
                self.schema = expected
                self._options = pa_json.ParseOptions(
                    explicit_schema=expected, unexpected_field_behavior="ignore" if declared else "error"
                )
                self._first_rows = self._parsed_first(expected)
        except BaseException:
            self._stream.close()
            raise

    def _parsed_first(self, expected: pa.Schema) -> pa.Table:
        try:
            return self._parse(self._first)
        except InputError:
            phrases = [] if self._declared else self._drift(expected)
            if phrases:
                raise drift_error(self._file.location, phrases) from None
            raise

    def _drift(self, expected: pa.Schema) -> list[str]:
        try:
            found = found_schema(_infer(self._first), self._file.location)
        except (pa.ArrowException, ValueError):
            return []
        missing = "has no column"
        return [p for p in drift(found, expected) if not p.startswith(missing) and " is null;" not in p]

    def batches(self, skip: int) -> Iterator[pa.RecordBatch]:
        """Parsed rows; the first ``skip`` are parsed and dropped."""
        table = self._first_rows
        while True:
            kept = table.slice(min(skip, table.num_rows))
            skip -= table.num_rows - kept.num_rows
            for batch in _batches(kept):
                batch.validate(full=True)
                yield batch
            block = next(self._blocks, None)
            if block is None:
                return
            table = self._parse(block)

    def _parse(self, block: bytes) -> pa.Table:
        try:
            table = _parsed(block, self._options)
        except pa.ArrowInvalid as error:
            raise self._fault(block, error) from error
        self._line += block.count(b"\n")
        return table

    def _fault(self, block: bytes, error: pa.ArrowInvalid) -> InputError:
        """Find the line: one bad line fails its whole block."""
        lines = block.split(b"\n")
        low, high = 0, len(lines)
        while high - low > 1:
            middle = (low + high) // 2
            if self._is_sound(b"\n".join(lines[low:middle])):
                low = middle
            else:
                high = middle
        reason = str(error).partition("\n")[0].removeprefix("JSON parse error: ").rpartition(" in row")
        names = self._unknown_names(lines[low])
        told = f"a name that earlier lines do not have ({names})" if names else (reason[0] or reason[2])
        return InputError(
            f"{self._file.location}: line {self._line + low:,} cannot be read: {told}.\n"
            "  All before the last commit is safe. Fix the line or pass schema=."
        )

    def _unknown_names(self, line: bytes) -> str:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            return ""
        names = value if isinstance(value, dict) and not self._declared else {}
        return ", ".join(f'"{name}"' for name in names if name not in self.schema.names)

    def _is_sound(self, block: bytes) -> bool:
        try:
            _parsed(block, self._options)
        except pa.ArrowInvalid:
            return False
        return True

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def _infer(block: bytes) -> pa.Schema:
    return _parsed(block, pa_json.ParseOptions()).schema


def _parsed(block: bytes, options: pa_json.ParseOptions) -> pa.Table:
    if not block.strip():
        return (options.explicit_schema or pa.schema([])).empty_table()
    read = pa_json.ReadOptions(use_threads=False, block_size=len(block) + 1)
    return pa_json.read_json(pa.BufferReader(block), read, options)  # type: ignore[arg-type]


def _batches(table: pa.Table) -> list[pa.RecordBatch]:
    return list(table.combine_chunks().to_batches())


def _blocks(stream: pa.NativeFile) -> Iterator[bytes]:
    """The text in pieces of whole lines. Raises ValueError for a line that is too long."""
    rest = b""
    while True:
        data = bytes(stream.read(BLOCK_BYTES))
        if not data:
            break
        cut = data.rfind(b"\n") + 1
        if cut:
            yield rest + data[:cut]
            rest = data[cut:]
        elif len(rest) + len(data) > LINE_BYTES_MAX:
            raise ValueError(f"a line is longer than {LINE_BYTES_MAX:,} bytes")
        else:
            rest += data
    if rest:
        yield rest

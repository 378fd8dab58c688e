"""What all file sources share: opening files in order, offsets, and errors that name the file.

The offset is ``{"files": [[name, size, checksum, rows], …]}``: the files that were read, in the order in which they
were read, ``rows`` being None for a file that was read to its end and else the number of the next row. Files that are
not in it come after all that are, also where their names sort earlier.

Laws
    - A file that an offset names must still be there with the same size and checksum; else nothing is read.
    - A file's schema is compared when it is opened, before any of its rows is given out.
    - One file is open at a time; a batch has at most 65,536 rows.
"""

import os
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeAlias

import pyarrow as pa

from engine.batch import Origin
from engine.errors import EngineError, InputError, SourceError
from engine.progress import Offset
from engine.source import Read, Replay
from engine.sources.file_listing import FileSet, Identity, InputFile, edge_checksum, identity_of
from engine.sources.row_schema import Fit, drift, drift_error, found_schema
from engine.storage import file_size

__all__ = ["BATCH_ROWS", "FileReader", "FileSource", "OpenFile", "sliced"]

Entries: TypeAlias = Sequence[tuple[str, int, str, int | None]]

BATCH_ROWS = 65_536

AHEAD_FILES = 256
"""How many files ``schema`` looks at where their schemas are cheap to read."""

_FAULTS = (pa.ArrowException, OSError, ValueError, TypeError, KeyError, OverflowError, struct.error)
"""What decoders raise on damaged bytes."""


class OpenFile(Protocol):
    """One file while it is read."""

    @property
    def schema(self) -> pa.Schema:
        """The columns that it holds, as far as they are wanted."""

    @property
    def row_count(self) -> int | None:
        """How many rows it holds, where that is known before they are read."""

    def batches(self, skip: int) -> Iterator[pa.RecordBatch]:
        """Its rows behind the first ``skip``, in batches of any size."""

    def close(self) -> None:
        """Release it. Harmless when repeated."""


@dataclass(frozen=True, slots=True)
class FileSource(ABC):
    """A source of files: an immutable value."""

    files: FileSet
    declared: pa.Schema | None

    kind: ClassVar[str]
    """The public function's name; the source's name begins with it."""

    title: ClassVar[str]
    """What messages call the format."""

    schema_is_cheap: ClassVar[bool] = False
    """Whether a file's schema is in its head or footer, so that ``schema`` can look at many files."""

    @property
    def name(self) -> str:
        """The format and the paths as given."""
        return f"{self.kind}({self.files})"

    @property
    def replay(self) -> Replay:
        """Files are read again from any row."""
        return Replay.REPLAYABLE

    @abstractmethod
    def open_file(self, file: InputFile, expected: pa.Schema | None) -> OpenFile:
        """Open a file; ``expected`` is the source's schema, None while that is being found out. Raises anything."""

    def checksum(self, handle: pa.NativeFile, size: int) -> str:
        """What tells this state of a file from another one of the same size."""
        return edge_checksum(handle, size)

    def constants(self, file: InputFile, files: Sequence[InputFile]) -> Mapping[str, Any]:
        """Columns that the path of a file gives."""
        return {}

    def expected(self, file: InputFile, files: Sequence[InputFile]) -> pa.Schema | None:
        """The schema of the source's rows by its first file; None where that holds too little to tell."""
        with _opened(self, file, None) as opened:
            return found_schema(opened.schema, file.location)

    def schema(self) -> pa.Schema:
        """The schema of all rows: the declared one, or the first file's. Raises InputError where files differ."""
        files = self.files.files()
        expected = self.schema_by(files)
        for file in files[:AHEAD_FILES] if self.schema_is_cheap else files[:1]:
            with _reading(self, file, 0), _opened(self, file, expected) as opened:
                self.fit(file, files, opened, expected)
        return expected

    def schema_by(self, files: Sequence[InputFile]) -> pa.Schema:
        """The declared schema, or that of the first of ``files`` that can tell it."""
        return self.declared if self.declared is not None else self.first_schema(files)

    def first_schema(self, files: Sequence[InputFile]) -> pa.Schema:
        """The schema of the first of ``files`` that can tell it. Raises InputError where none can."""
        for file in files:
            with _reading(self, file, 0):
                schema = self.expected(file, files)
            if schema is not None:
                return schema
        raise InputError(f"{self.files}: no file holds a row to take the schema from.\n  Pass schema=.")

    def fit(self, file: InputFile, files: Sequence[InputFile], opened: OpenFile, expected: pa.Schema) -> Fit:
        """How this file's columns become the source's. Raises InputError."""
        constants = self.constants(file, files)
        return Fit(opened.schema, expected, file.location, declared=self.declared is not None, constants=constants)

    def open(self, offset: Offset | None, *, durable: bool) -> "FileReader":
        """Begin behind ``offset``. Raises InputError where a file that was read has changed or is gone."""
        if offset is None:
            files = self.files.files()
            return FileReader(self, files, self.schema_by(files))
        return self._resume(offset["files"])

    def before(self, offset: Offset) -> "FileReader":
        """The rows that came before ``offset``, from the files and in the order that it names. Raises InputError."""
        entries = offset["files"]
        known, unknown, expected = self._known(entries)
        return FileReader(self, [*known, *unknown], expected, end=(len(known), entries[-1][3]))

    def in_order_before(self, offset: Offset) -> bool:
        """Always: the offset names the files in the order in which they were read."""
        return True

    def _resume(self, entries: Entries) -> "FileReader":
        known, unknown, expected = self._known(entries)
        done = [list(entry) for entry in entries]
        skip = done.pop()[3] if done and done[-1][3] is not None else 0
        return FileReader(self, [*known, *unknown], expected, done=done, skip=int(skip or 0))

    def _known(self, entries: Entries) -> tuple[list[InputFile], list[InputFile], pa.Schema]:
        """The files that an offset names, the others, and the schema of their rows."""
        now = self.files.files_or_none()
        unknown = {file.name: file for file in now}
        known = []
        for name, size, checksum, _ in entries:
            file = unknown.pop(name, None)
            if file is None:
                raise InputError(
                    f"{self.name}: {name} is gone; rows of it are committed.\n"
                    "  Put the file back as it was, or begin anew with another state directory."
                )
            self._check_unchanged(file, Identity(size, checksum))
            known.append(file)
        expected = self.schema_by(now or self.files.files())
        self._check_schema(expected, known, now[0])
        return known, list(unknown.values()), expected

    def _check_schema(self, expected: pa.Schema, known: list[InputFile], first: InputFile) -> None:
        """New files may sort before the known ones, but they must not change what the rows look like."""
        if self.declared is None and known:
            phrases = drift(expected, self.first_schema(known))
            if phrases:
                raise drift_error(self.name if first in known else first.location, phrases)

    def _check_unchanged(self, file: InputFile, before: Identity) -> None:
        with _reading(self, file, 0):
            now = identity_of(file, self.checksum)
        if now == before:
            return
        what = "its content differs"
        if now.size_bytes != before.size_bytes:
            what = f"it had {before.size_bytes:,} bytes, now {now.size_bytes:,}"
        raise InputError(
            f"{file.location}: changed since the last run ({what}); rows of it are committed.\n"
            "  Restore the file as it was and put new rows into a new file, or begin anew with another state directory."
        )

    def ack(self, offset: Offset) -> None:  # noqa: B027 - not abstract: no file source has anything to do
        """Files are kept: nothing to do."""

    def covers(self, directory: str) -> bool:
        """Whether files that are written below ``directory`` could be input of this source."""
        return self.files.covers(directory)


class FileReader:
    """One pass over the files of a source, one file at a time."""

    def __init__(
        self,
        source: FileSource,
        files: list[InputFile],
        expected: pa.Schema,
        *,
        done: list[list[str | int | None]] | None = None,
        skip: int = 0,
        end: tuple[int, int | None] | None = None,
    ) -> None:
        self._source = source
        self._files = files
        self._expected = expected
        self._done: list[list[str | int | None]] = done or []
        self._row = skip
        # How many of the files are read, and how many rows of the last one (None: all).
        self._end_files, self._end_row = end or (len(files), None)
        self._identity = Identity(0, "")
        self._opened: OpenFile | None = None
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._fit: Fit | None = None

    @property
    def _file(self) -> InputFile:
        return self._files[len(self._done)]

    def read(self) -> Read | None:
        """Give the next rows, or None behind the last file. Raises InputError, SourceError."""
        while len(self._done) < self._end_files and not (self._in_last_file() and self._row == self._end_row):
            with _reading(self._source, self._file, self._row):
                if self._opened is None:
                    self._open()
                rows = next(self._batches, None)
            if rows is not None:
                return self._read(rows)
            self._end_file()
        return None

    def _in_last_file(self) -> bool:
        return len(self._done) == self._end_files - 1

    def close(self) -> None:
        """Release the open file."""
        opened, self._opened, self._batches = self._opened, None, iter(())
        if opened is not None:
            opened.close()

    def _open(self) -> None:
        file = self._file
        self._identity = identity_of(file, self._source.checksum)
        self._opened = self._source.open_file(file, self._expected)
        self._fit = self._source.fit(file, self._files, self._opened, self._expected)
        self._batches = sliced(self._opened.batches(self._row))

    def _read(self, rows: pa.RecordBatch) -> Read:
        assert self._opened is not None
        assert self._fit is not None
        file, start = self._file, self._row
        if self._end_row is not None and self._in_last_file():
            rows = rows.slice(0, self._end_row - start)
        rows = self._fit.apply(rows, start)
        self._row = start + rows.num_rows
        ended = self._row == self._opened.row_count
        entry = [file.name, self._identity.size_bytes, self._identity.checksum, None if ended else self._row]
        offset = {"files": [*self._done, entry]}
        return Read(rows, Origin(self._source.name, file.location, start, self._row), offset)

    def _end_file(self) -> None:
        assert self._opened is not None
        file, promised = self._file, self._opened.row_count
        self.close()
        if promised is not None and promised != self._row:
            raise InputError(
                f"{file.location}: its metadata promises {promised:,} rows, but {self._row:,} were found.\n"
                f"  The file is damaged: write it again and run again."
            )
        with _reading(self._source, file, self._row):
            size = file_size(file.path)
        if size != self._identity.size_bytes:
            raise InputError(
                f"{file.location}: changed while it was read (from {self._identity.size_bytes:,} to {size:,} bytes).\n"
                "  Put only finished files there (write under another name, then rename), and run again."
            )
        self._done = [*self._done, [file.name, size, self._identity.checksum, None]]
        self._row = 0


def sliced(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same rows without empty batches and without batches above 65,536 rows."""
    for batch in batches:
        for start in range(0, batch.num_rows, BATCH_ROWS):
            yield batch if batch.num_rows <= BATCH_ROWS else batch.slice(start, BATCH_ROWS)


@contextmanager
def _opened(source: FileSource, file: InputFile, expected: pa.Schema | None) -> Iterator[OpenFile]:
    opened = source.open_file(file, expected)
    try:
        yield opened
    finally:
        opened.close()


@contextmanager
def _reading(source: FileSource, file: InputFile, row: int) -> Iterator[None]:
    """Turn whatever a decoder or the system raises into an error that names the file."""
    try:
        yield
    except EngineError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{file.location}: vanished while it was to be read.\n  Put it back and run again.") from error
    except MemoryError as error:
        raise SourceError(
            f"{file.location}: there was not enough memory to read it.\n"
            "  The file may well be sound, and all before the last commit is safe. Free memory and run again.",
            source=source.name,
        ) from error
    except _FAULTS as error:
        reason = str(error).strip().partition("\n")[0]
        if isinstance(error, OSError) and error.errno is not None:
            raise SourceError(
                f"{file.location}: cannot be read: {_reason(error)}.\n  Mend it and run again.",
                source=source.name,
            ) from error
        where = f" behind row {row:,}" if row else ""
        safe = "All before the last commit is safe." if row else "Nothing from it was committed."
        raise InputError(
            f"{file.location}: cannot be read{where} as {source.title}: {reason}.\n"
            f"  {safe} Write the file again, whole, and run again.",
            source=source.name,
        ) from error


def _reason(error: OSError) -> str:
    """Why, without the path that Arrow puts into its own errors."""
    own = error.strerror or ""
    return os.strerror(error.errno) if error.errno and ("[errno" in own or not own) else own

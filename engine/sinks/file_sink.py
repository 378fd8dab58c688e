"""What the sinks of files share: they stage, publish by rename, and own their directory. Class B: exactly once.

Laws
    - A sink is a description until ``open``; each ``open`` begins anew, so that one pipeline may run many times.
    - Formats add an extension, a reader of marks, a check of the schema and an encoder; nothing else differs.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from engine.errors import PipelineError, SinkError
from engine.path_argument import path_fault
from engine.progress import Token
from engine.sink import Guarantee
from engine.sinks.file_writer import Encoder, FileWriter, Limits
from engine.sinks.hive_layout import HiveLayout, layout_faults
from engine.sinks.output_directory import OutputDirectory
from engine.sinks.ownership import FileMark
from engine.sinks.staged_file import StagedFile
from engine.storage import Storage

__all__ = ["FileSink"]

OPEN_FILES = 256
"""Files that all writers together keep open: a quarter of the usual limit of descriptors."""

RETAINED_BYTES = 256 << 20
"""The most that waiting slices of one writer may keep alive of foreign buffers, whatever its budget."""


class FileSink(ABC):
    """A directory of files. ``storage`` may be replaced before ``open``."""

    kind: str
    extension: str
    pipeline: str | None = None
    """The name of the pipeline, for messages; whoever runs it may set it."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        partition_by: str | Sequence[str] | None,
        mode: str,
        row_group_rows: int,
        max_file_bytes: int | None,
        storage: Storage | None,
    ) -> None:
        faults = []
        if mode not in ("error", "append"):
            faults.append(f'{self.kind}: mode is {mode!r}; "error" and "append" there are')
        if row_group_rows < 1:
            faults.append(f"{self.kind}: row_group_rows is {row_group_rows}; at least 1 is needed")
        if max_file_bytes is not None and max_file_bytes < 1:
            faults.append(f"{self.kind}: max_file_bytes is {max_file_bytes}; at least 1 is needed")
        if fault := path_fault(path):
            faults.append(f"{self.kind}: {fault}")
        if faults:
            raise PipelineError(faults)
        self.location = os.fspath(path)
        self.storage = storage if storage is not None else Storage()
        self.partition_by = (partition_by,) if isinstance(partition_by, str) else tuple(partition_by or ())
        self.mode = mode
        self.row_group_rows = row_group_rows
        self.max_file_bytes = max_file_bytes
        self._output: OutputDirectory | None = None
        self._schema = pa.schema([])
        self._layout: HiveLayout | None = None
        self._limits: Limits | None = None

    def __repr__(self) -> str:
        return self.name

    @property
    def name(self) -> str:
        """The format, the normalised path as it was given, and the layout below it: what makes it another sink."""
        layout = f", by {', '.join(self.partition_by)}" if self.partition_by else ""
        return f"{self.kind}({os.path.normpath(self.location)}{layout})"

    @property
    def guarantee(self) -> Guarantee:
        """Exactly once."""
        return Guarantee.EXACTLY_ONCE

    @property
    def published_files(self) -> int:
        """Files that this run published."""
        return self._output.published_files if self._output is not None else 0

    @property
    def published_bytes(self) -> int:
        """Bytes in the files that this run published."""
        return self._output.published_bytes if self._output is not None else 0

    @property
    def found_files(self) -> int:
        """Files of earlier runs of the same pipeline that ``open`` found in place."""
        return self._output.found_files if self._output is not None else 0

    def faults(self, schema: pa.Schema) -> list[str]:
        """Why rows of ``schema`` cannot be written; empty where they can. Touches nothing."""
        found = layout_faults(schema, self.partition_by)
        return found or self._format_faults(HiveLayout(schema, self.partition_by).file_schema)

    def open(self, schema: pa.Schema, *, token: Token, partitions: int, memory_bytes: int) -> None:
        """Begin a run: the directory must be missing, empty, or ours. Raises SinkError, and then touches nothing."""
        faults = self.faults(schema)
        if faults:
            raise SinkError("\n".join(f"{self.name}: {fault}" for fault in faults), sink=self.name)
        output = OutputDirectory(
            self.location,
            storage=self.storage,
            kind=self.kind,
            extension=self.extension,
            sink=self.name,
            writer=f'"{self.pipeline}"' if self.pipeline else "this pipeline",
            incarnation=token.incarnation,
            shared=self.mode == "append",
            read_mark=self._read_mark,
        )
        output.check(token)
        output.prepare()
        self._schema = schema
        self._layout = HiveLayout(schema, self.partition_by) if self.partition_by else None
        self._limits = Limits(
            row_group_rows=self.row_group_rows,
            pending_bytes=max(1, memory_bytes // partitions),
            retained_bytes=min(memory_bytes, RETAINED_BYTES),
            file_bytes=self.max_file_bytes,
            open_files=max(4, OPEN_FILES // partitions),
        )
        self._output = output
        self._opened(self._layout.file_schema if self._layout is not None else schema)

    def writer(self, partition: int, token: Token) -> FileWriter:
        """The writer of one partition for the epoch of ``token``. May be called on any thread."""
        if self._limits is None:
            raise SinkError(f"{self.name} is not open", sink=self.name)
        return FileWriter(
            self._opened_output(),
            FileMark.of(token, partition),
            self._schema,
            layout=self._layout,
            limits=self._limits,
            open_encoder=self._open_encoder,
        )

    def commit(self, handles: Sequence[Any]) -> None:
        """Publish prepared files: rename each, then make the directories durable. Idempotent. Raises SinkError."""
        self._opened_output().publish([handle for handle in handles if handle is not None])

    def discard_after(self, token: Token) -> None:
        """Remove what was staged in epochs after ``token``'s, and the staging directory. Raises SinkError.

        Every file of earlier epochs must have been published before.
        """
        self._opened_output().discard_after(token.epoch)

    def _opened_output(self) -> OutputDirectory:
        if self._output is None:
            raise SinkError(f"{self.name} is not open", sink=self.name)
        return self._output

    def _opened(self, file_schema: pa.Schema) -> None:
        """A run has begun; ``file_schema`` is what the files will hold."""
        self._file_schema = file_schema

    @abstractmethod
    def _format_faults(self, schema: pa.Schema) -> list[str]:
        """Why the format cannot hold ``schema``."""

    @abstractmethod
    def _read_mark(self, path: str) -> FileMark | None:
        """The mark of a file; None where it has none or is not of the format. Raises OSError."""

    @abstractmethod
    def _open_encoder(self, staged: StagedFile, mark: FileMark, rows: pa.Table) -> Encoder:
        """Begin a file."""

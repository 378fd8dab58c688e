"""Whose rows a durable log has, and how many: a document of each pipeline that writes to it.

    <log>/sinks/<incarnation>     {"pipeline": its name, "epoch": the last that was published,
                                   "stops": where each partition ended by then}

Laws
    - A pipeline's document is made before its first row, and replaced after the rows of each epoch.
    - So what is missing is found out: a document that the state directory knows of, rows that the document counted, and
      a state directory whose rows are here.
"""

import os
from dataclasses import asdict, dataclass

from engine.errors import CorruptLog
from engine.log.document import read_document, write_document
from engine.progress import Epoch
from engine.storage import Storage

__all__ = ["LogMark", "LogMarks"]


@dataclass(frozen=True, slots=True)
class LogMark:
    """How far one incarnation of a pipeline has come in a log."""

    pipeline: str
    epoch: Epoch
    stops: list[int]


class LogMarks:
    """The documents in ``directory``. All methods raise CorruptLog and OSError."""

    def __init__(self, storage: Storage, directory: str, *, incarnation: str, pipeline: str) -> None:
        self._storage = storage
        self._directory = directory
        self._incarnation = incarnation
        self._pipeline = pipeline

    def own(self) -> LogMark | None:
        """The mark of this incarnation; None where it has none."""
        return self._read(self._incarnation)

    def write(self, epoch: Epoch, stops: list[int]) -> None:
        """Replace the mark of this incarnation. Where that fails, ``own`` may give the new one: then ``sync``."""
        mark = LogMark(self._pipeline, epoch, stops)
        write_document(self._storage, os.path.join(self._directory, self._incarnation), asdict(mark))

    def sync(self) -> None:
        """Make the mark durable where it was named and its name perhaps not synced."""
        self._storage.sync_directory(self._directory)

    def of_other_incarnations(self) -> dict[str, LogMark]:
        """The marks of the pipeline that came from other state directories."""
        names = {name for name in self._storage.list(self._directory) if not name.endswith(".tmp")}
        marks = {name: mark for name in names - {self._incarnation} if (mark := self._read(name)) is not None}
        return {name: mark for name, mark in marks.items() if mark.pipeline == self._pipeline}

    def forget(self, incarnation: str) -> None:
        """Remove the mark of an incarnation that never published a row."""
        self._storage.unlink(os.path.join(self._directory, incarnation))

    def _read(self, incarnation: str) -> LogMark | None:
        path = os.path.join(self._directory, incarnation)
        document = read_document(self._storage, path)
        if document is None:
            return None
        try:
            return LogMark(**document)
        except TypeError:
            raise CorruptLog(f"{path} is no mark of a pipeline; it holds {sorted(document)}", path=path) from None

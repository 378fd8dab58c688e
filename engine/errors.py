"""Every exception that engine raises, by whose fault it is.

    EngineError
    ├── PipelineError   the pipeline as written cannot run        (its author's)
    ├── SourceError     rows could not be read                    (the source's)
    │   └── InputError  the input is not what it was declared     (the input's)
    ├── StageError      a stage failed on rows                    (the function's)
    ├── SinkError       rows could not be written                 (the sink's)
    ├── StateError      the state directory cannot be used        (its owner's)
    │   └── CorruptState  a file in it is damaged                 (the disk's)
    └── LogError        a log cannot be used                      (its owner's)
        └── CorruptLog  a file of it is damaged                   (the disk's)

A message names the stage, partition, column or file, says what was expected and what was found, and then what to do.
The exception of a user's function or of the operating system is the ``__cause__``. No exception group ever leaves
engine.
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

__all__ = [
    "CorruptLog",
    "CorruptState",
    "EngineError",
    "InputError",
    "LogError",
    "PipelineError",
    "SinkError",
    "SourceError",
    "StageError",
    "StateError",
    "missing_column",
]


class EngineError(Exception):
    """The base of all errors of engine; catch it to catch them all."""


class PipelineError(EngineError, ValueError):
    """The pipeline cannot run as it is written. Mend every entry of ``faults``; nothing was read or written.

    ``faults`` holds one line per fault, each beginning with the name of its stage.
    """

    def __init__(self, faults: str | Sequence[str], *, pipeline: str | None = None) -> None:
        self.faults: tuple[str, ...] = (faults,) if isinstance(faults, str) else tuple(faults)
        self.pipeline = pipeline
        if pipeline is None and len(self.faults) == 1:
            text = self.faults[0]
        else:
            count = "1 fault" if len(self.faults) == 1 else f"{len(self.faults)} faults"
            where = f' in "{pipeline}"' if pipeline is not None else ""
            text = "\n".join([f"{count}{where}", *(f"  {fault}" for fault in self.faults)])
        super().__init__(text)


class SourceError(EngineError):
    """Rows could not be read. Everything before the last commit is safe; mend the source and run again."""

    def __init__(self, message: str, *, source: str | None = None) -> None:
        self.source = source
        super().__init__(message)


class InputError(SourceError, ValueError):
    """The input is not what it was declared or what it was before. Mend the input, or its declaration."""


class StageError(EngineError):
    """A stage failed on rows. Everything before the last commit is safe; mend the function and run again."""

    def __init__(self, message: str, *, stage: str, partition: int | None = None, rows: str | None = None) -> None:
        self.stage = stage
        self.partition = partition
        self.rows = rows
        super().__init__(message)


class SinkError(EngineError):
    """Rows could not be written or published. Nothing uncommitted is visible; mend the sink and run again."""

    def __init__(self, message: str, *, sink: str | None = None, partition: int | None = None) -> None:
        self.sink = sink
        self.partition = partition
        super().__init__(message)


class StateError(EngineError):
    """The state directory cannot be used: it is taken, or of another pipeline, or it disagrees with the output."""


class CorruptState(StateError):  # noqa: N818 - what it is, not that it is one
    """A file of the state directory is damaged. Nothing was changed or deleted; restore or repair it, or start anew."""

    def __init__(self, message: str, *, path: str, offset: int | None = None) -> None:
        self.path = path
        self.offset = offset
        super().__init__(message)


class LogError(EngineError):
    """A log cannot be used: it is taken, or rows are gone, or the disk refuses. What was acknowledged is safe."""


class CorruptLog(LogError):  # noqa: N818 - what it is, not that it is one
    """A file of a log is damaged below what was durable. Nothing was changed or deleted; restore the file."""

    def __init__(self, message: str, *, path: str, offset: int | None = None) -> None:
        self.path = path
        self.offset = offset
        super().__init__(message)


def missing_column(name: str, columns: Iterable[str]) -> str:
    """The phrase for a column that is not there, with the nearest name and all the names there are."""
    names = list(columns)
    nearest = get_close_matches(name, names, n=1)
    hint = f'; did you mean "{nearest[0]}"?' if nearest else "."
    shown = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
    return f'no column "{name}"{hint} ({shown})'

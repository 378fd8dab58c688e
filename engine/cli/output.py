"""Standard output as the commands use it: what cannot be written is known for what it is.

Laws
    - A failure to write is remembered: nothing else tells it from the errors of a pipeline or of the user's module.
    - Text that the encoding has no characters for is escaped as JSON escapes it, so that lines of JSON stay JSON.
    - Where tests or notebooks have put a stream of their own in its place, that one is used.
    - Messages for a standard error that nobody opened go nowhere: Python would print them to standard output.
"""

import codecs
import io
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["begin_output", "flush_output", "forget_output", "output_failure"]

_ESCAPES = "engine escapes"


class _Output(io.FileIO):
    """The descriptor, and the first failure to write to it."""

    failure: OSError | None = None

    def write(self, data: "Buffer", /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.failure = self.failure or error
            raise


class _Nowhere(io.TextIOBase):
    def write(self, text: str, /) -> int:
        return len(text)


def begin_output() -> None:
    """Take over ``sys.stdout``. Lines leave at once where they did so before, as with PYTHONUNBUFFERED."""
    if sys.stderr is None:
        sys.stderr = _Nowhere()
    stdout = sys.stdout
    if isinstance(stdout, io.TextIOWrapper):
        if stdout is sys.__stdout__:
            raw = io.BufferedWriter(_Output(stdout.fileno(), "w", closefd=False))
            at_once = stdout.line_buffering or stdout.write_through
            sys.stdout = io.TextIOWrapper(raw, stdout.encoding, _ESCAPES, line_buffering=at_once)
        else:
            stdout.reconfigure(errors=_ESCAPES)


def flush_output() -> None:
    """Write what is buffered; now, as a failure can still be told. Raises OSError."""
    if sys.stdout is not None:
        sys.stdout.flush()


def output_failure() -> OSError | None:
    """Why something could not be written; None where everything was."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return raw.failure if isinstance(raw, _Output) else None


def forget_output() -> None:
    """Let go of what is buffered: Python would complain once more when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """Characters as ``\\uXXXX``, those beyond 16 bits as two."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    digits = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{digits[at : at + 4]}" for at in range(0, len(digits), 4)), error.end


codecs.register_error(_ESCAPES, _escaped)

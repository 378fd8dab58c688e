"""The entry point: finds the command, and turns whatever it raises into a message and an exit code.

Laws
    - Output that cannot be written, such as to a full disk, is an error as any: one line, and exit code 1. Where its
      reader has left there is nobody to be told.
"""

import sys
import traceback
from collections.abc import Sequence

from engine.cli.output import begin_output, flush_output, forget_output, output_failure

__all__ = ["main"]

FAILED = 1
USAGE = 2
INTERRUPTED = 130
TERMINATED = 143


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that ``arguments`` name (by default those of the process) and give the exit code."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    begin_output()
    try:
        code = _dispatch(tokens)
        flush_output()
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            print(f"engine: standard output cannot be written: {error.strerror or error}", file=sys.stderr)
        forget_output()
        return FAILED
    return code


def _dispatch(tokens: list[str]) -> int:
    if tokens == ["--version"]:
        # Answered here: importing the command line costs more than the answer.
        from importlib.metadata import version

        print(f"engine {version('ingest-engine')}")
        return 0
    from cyclopts import CycloptsError

    from engine.cli.commands import app
    from engine.cli.execution import Terminated
    from engine.cli.reference import BadReferenceError
    from engine.errors import EngineError

    try:
        app(tokens, exit_on_error=False, result_action="return_value")
    except CycloptsError:
        return USAGE  # cyclopts has told what is wrong
    except BadReferenceError as fault:
        print(f"engine: {fault}", file=sys.stderr)
        return USAGE
    except EngineError as error:
        print(_message(error), file=sys.stderr)
        return FAILED
    except Terminated:
        return TERMINATED
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception:
        if (failure := output_failure()) is not None:
            raise failure from None
        # Not one of ours: the traceback is the message, as when the user's module fails while it is imported.
        traceback.print_exc()
        return FAILED
    return 0


def _message(error: BaseException) -> str:
    """The class and the text, then what was noted on the way."""
    return "\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())])


if __name__ == "__main__":
    sys.exit(main())

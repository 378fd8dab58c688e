"""The entry point: finds the command, and turns whatever it raises into a message and an exit code."""

import os
import sys
import traceback
from collections.abc import Sequence

__all__ = ["main"]

FAILED = 1
USAGE = 2
INTERRUPTED = 130
TERMINATED = 143


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that ``arguments`` name (by default those of the process) and give the exit code."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    if tokens == ["--version"]:
        # Answered here: importing the command line costs more than the answer.
        from importlib.metadata import version

        print(f"engine {version('ingest-engine')}")
        return 0
    try:
        return _dispatch(tokens)
    except BrokenPipeError:
        # The reader of our output has left; Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def _dispatch(tokens: list[str]) -> int:
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
    except BrokenPipeError:
        raise
    except Exception:
        # Not one of ours: the traceback is the message, as when the user's module fails while it is imported.
        traceback.print_exc()
        return FAILED
    return 0


def _message(error: BaseException) -> str:
    """The class and the text, then what was noted on the way."""
    return "\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())])


if __name__ == "__main__":
    sys.exit(main())

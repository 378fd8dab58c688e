"""Runs a pipeline for a command: progress on stderr, the report on stdout, signals turned into a drain.

Laws
    - Ctrl-C and SIGTERM take the same path: the run drains, commits and raises KeyboardInterrupt. The second gives up.
    - Neither is lost while the pipeline is still being loaded.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from engine._runtime.entry import run
from engine.cli.progress_view import view_on
from engine.pipeline import Pipeline

__all__ = ["Terminated", "run_and_report"]


class Terminated(BaseException):
    """SIGTERM ended the command."""


def run_and_report(
    load: Callable[[], Pipeline],
    *,
    state: str | os.PathLike[str] | None,
    memory: str,
    commit_every_s: float,
    commit_every_bytes: int | None = None,
) -> None:
    """Run the pipeline that ``load`` gives and print its report.

    Raises EngineError, KeyboardInterrupt after Ctrl-C, and Terminated after SIGTERM.
    """
    name = "engine"
    try:
        with _sigterm_as_interrupt():
            pipeline = load()
            name = pipeline.name
            with view_on(sys.stderr) as view:
                report = run(
                    pipeline,
                    state=state,
                    memory=memory,
                    commit_every_s=commit_every_s,
                    commit_every_bytes=commit_every_bytes,
                    progress=view,
                )
    except (KeyboardInterrupt, Terminated) as interrupt:
        cause = "SIGTERM" if isinstance(interrupt, Terminated) else "Ctrl-C"
        resumes = " Run it again: it resumes." if state is not None else ""
        print(f"{name}: stopped by {cause}.{resumes}", file=sys.stderr)
        raise
    print(report, flush=True)


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """SIGTERM does what Ctrl-C does, and what comes out is Terminated."""
    terminated = False

    def interrupt(signum: int, frame: FrameType | None) -> None:
        nonlocal terminated
        if signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, signal.SIG_DFL):
            # Nobody listens yet; a shell starts its background jobs with Ctrl-C ignored.
            raise Terminated
        terminated = True
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        if terminated:
            raise Terminated from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)

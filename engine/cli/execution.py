"""Runs a pipeline for a command: progress on stderr, the report on stdout, signals turned into a drain.

Laws
    - Ctrl-C and SIGTERM take the same path: the run drains, commits and raises KeyboardInterrupt. The second gives up.
      What is no run, such as a repair, ends by the same exceptions.
    - Neither is lost while the pipeline is still being loaded.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from engine._runtime.entry import run
from engine.cli.progress_view import view_on
from engine.pipeline import Pipeline

__all__ = ["Terminated", "interruptible", "run_and_report"]


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
    with interruptible(" Run it again: it resumes." if state is not None else "") as job:
        pipeline = load()
        job.name = pipeline.name
        with view_on(sys.stderr) as view:
            report = run(
                pipeline,
                state=state,
                memory=memory,
                commit_every_s=commit_every_s,
                commit_every_bytes=commit_every_bytes,
                progress=view,
            )
    print(report, flush=True)


@dataclass
class Job:
    """What may be interrupted; its name, once it has one."""

    name: str = "engine"


@contextmanager
def interruptible(advice: str) -> Iterator[Job]:
    """Let Ctrl-C and SIGTERM end what is within, and say so, with ``advice`` behind.

    Raises KeyboardInterrupt after Ctrl-C, and Terminated after SIGTERM.
    """
    job = Job()
    try:
        with _sigterm_as_interrupt():
            yield job
    except (KeyboardInterrupt, Terminated) as interrupt:
        cause = "SIGTERM" if isinstance(interrupt, Terminated) else "Ctrl-C"
        print(f"{job.name}: stopped by {cause}.{advice}", file=sys.stderr)
        raise


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

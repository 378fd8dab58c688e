"""The command line in a process of its own."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

# The console script does just this; a test must not depend on where it was installed.
ENGINE = [sys.executable, "-P", "-c", "import sys; from engine.cli.main import main; sys.exit(main())"]


def interrupted(directory: Path, command: list[str], line: str, *signals: int, **options: Any) -> tuple[int, str]:
    """Run a command in ``directory``, send the signals once it has printed that line; its exit code, and stderr.

    Ctrl-C is heard also where the tests are a shell's background job, which tells its children to ignore it.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        child = subprocess.Popen(
            [*ENGINE, *command],
            cwd=directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **options,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    assert child.stdout is not None
    assert child.stdout.readline() == f"{line}\n", child.communicate()[1]
    for number in signals:
        os.kill(child.pid, number)
    _, stderr = child.communicate(timeout=60)
    return child.returncode, stderr

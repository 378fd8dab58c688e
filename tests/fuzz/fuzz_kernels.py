"""Feeds the kernels what Atheris thinks of, guided by the branches that were taken in their compiled code.

Usage: fuzz_kernels.py [--only KERNEL] [libFuzzer's options]; see `.ci/sanitized` for how to run it over kernels that
report to the fuzzer. The first byte of an input names the kernel, the others are its choices. A finding is written to
`crash-...`; run the same command with that file as argument, mend the kernel, and keep the case as a test.
"""

import os
import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parent))

from choices import Choices
from targets import TARGETS

NAMES = tuple(TARGETS)


def main(arguments: list[str]) -> None:
    counts = dict.fromkeys(NAMES, 0)
    only = None
    if "--only" in arguments:
        at = arguments.index("--only")
        only = arguments[at + 1]
        del arguments[at : at + 2]

    def one(data: bytes) -> None:
        name = only or NAMES[data[0] % len(NAMES) if data else 0]
        counts[name] += 1
        TARGETS[name](Choices(data[1:]))

    # libFuzzer ends the process itself, past all Python: what it did is said while it runs.
    def report() -> None:
        print(" ".join(f"{name}:{count:,}" for name, count in counts.items()), file=sys.stderr)

    del report
    atheris.Setup(arguments, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
    os._exit(0)

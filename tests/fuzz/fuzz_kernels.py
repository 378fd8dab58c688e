"""Feeds one kernel what Atheris thinks of, guided by the branches that were taken in its compiled code.

Usage: fuzz_kernels.py KERNEL [libFuzzer's options]; `.ci/sanitized` runs it over kernels that report to the fuzzer. A
finding is written to `crash-...`: run the same command with that file as its last argument, mend the kernel, keep the
case as a test. Without arguments it names the kernels.
"""

import sys

import atheris
from choices import Choices
from targets import TARGETS


def fuzz(kernel: str, options: list[str]) -> None:
    """Does not come back: libFuzzer ends the process."""
    atheris.Setup([sys.argv[0], *options], lambda data: TARGETS[kernel](Choices(data)))
    atheris.Fuzz()


if __name__ == "__main__":
    if len(sys.argv) == 1:
        print(*TARGETS)
    else:
        fuzz(sys.argv[1], sys.argv[2:])

"""The allocator of a run: jemalloc, unless somebody chose otherwise or it could not have the addresses it reserves."""

import subprocess
import sys

import pyarrow as pa

PROGRAM = """
import resource
import pyarrow as pa
from engine._runtime.arrow_memory import arrow_memory
most = resource.RLIM_INFINITY if {limit} is None else {limit}
resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))
with arrow_memory():
    print(pa.default_memory_pool().backend_name)
print(pa.default_memory_pool().backend_name)
"""


def allocators(limit: int | None) -> list[str]:
    """Which one is used inside of the block, and behind it."""
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(limit=limit)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_jemalloc_where_there_is_no_limit() -> None:
    usual = pa.default_memory_pool().backend_name
    there = usual == "mimalloc" and "jemalloc" in pa.supported_memory_backends()
    assert allocators(None) == ["jemalloc" if there else usual, usual]


def test_the_usual_one_where_addresses_are_limited() -> None:
    usual = pa.default_memory_pool().backend_name
    assert allocators(64 << 30) == [usual, usual]

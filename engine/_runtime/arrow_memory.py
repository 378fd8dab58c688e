"""Which allocator Arrow uses while a pipeline runs.

Measured on the whole job of 10 million rows with two worker threads: mimalloc, Arrow's usual choice, keeps some 100 MB
that were freed on other threads than they were allocated on, and costs a tenth more CPU than jemalloc. Buffers move
between threads all the time here, so jemalloc is used for the time of a run where Arrow was built with it, and gives
back after a tenth of a second what was freed, instead of after a second. Buffers that outlive the run remember their
own pool. Parquet's encoders cannot be given one: they keep to the choice that Arrow made when it was imported.

jemalloc reserves much more address space than it uses, and crashes where it gets none. So Arrow keeps its choice where
a limit is set to that (``ulimit -v``).
"""

import resource
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

__all__ = ["arrow_memory"]

DECAY_MS = 100


@contextmanager
def arrow_memory() -> Iterator[None]:
    """Let Arrow allocate by jemalloc inside of the block, unless another choice was made than the usual one."""
    before = pa.default_memory_pool()
    usual = before.backend_name == "mimalloc" and "jemalloc" in pa.supported_memory_backends()
    if not usual or resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        yield
        return
    pa.set_memory_pool(pa.jemalloc_memory_pool())
    pa.jemalloc_set_decay_ms(DECAY_MS)
    try:
        yield
    finally:
        pa.set_memory_pool(before)

"""The native core: kernels in Cython over C++17, compiled from `src/`, with a stub file beside each.

Laws: a kernel takes buffers and gives buffers, releases the GIL, never writes to a foreign buffer, never reads past its
end, does no I/O, and knows nothing of the rest of the package. Memory order, ownership and seeds: `src/README.md`.
"""

from engine._core import simd as simd  # first of all: no kernel may load under a bad ENGINE_SIMD

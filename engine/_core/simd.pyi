"""The levels of vector instructions that kernels have code for; ENGINE_SIMD forces one. ImportError for a bad one."""

def levels() -> tuple[str, ...]:
    """What this machine can run, from the plainest to the best: "scalar", then "neon" or "avx2", "avx512"."""

def chosen() -> str:
    """The level that all kernels of this process use: the best one, or the one that ENGINE_SIMD forced."""

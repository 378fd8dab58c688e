"""The levels of vector instructions that kernels have code for; detection and the override are in simd.hpp.

Importing this raises ImportError where ENGINE_SIMD names a level that does not exist or that this machine lacks.
"""

from os import environ

from libcpp.string cimport string
from libcpp.vector cimport vector


cdef extern from "simd.hpp" namespace "engine" nogil:
    cppclass SimdLevel:
        pass

    struct SimdChoice:
        string fault

    string level_name(SimdLevel level)
    vector[SimdLevel] machine_levels()
    SimdLevel simd_level()
    const SimdChoice& simd_choice()


def levels() -> tuple[str, ...]:
    """What this machine can run, from the plainest to the best: "scalar", then "neon" or "avx2", "avx512"."""
    return tuple([level_name(level).decode() for level in machine_levels()])


def chosen() -> str:
    """The level that all kernels of this process use: the best one, or the one that ENGINE_SIMD forced."""
    return level_name(simd_level()).decode()


if not simd_choice().fault.empty():
    raise ImportError(f"ENGINE_SIMD={environ['ENGINE_SIMD']}: {simd_choice().fault.decode()}")

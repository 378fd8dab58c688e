"""Builds the kernels: every src/<name>.pyx becomes engine._core.<name>.

ENGINE_SANITIZE=address,undefined compiles them with those sanitizers, for the tests of the core only: `.ci/sanitized`
says how such kernels are loaded. The first report ends the process.
"""

import os
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, find_packages, setup

SOURCES = Path("src")
SANITIZE = os.environ.get("ENGINE_SANITIZE", "")

if sys.platform == "win32":
    compile_args = ["/std:c++17", "/O2", "/EHsc"]
    link_args: list[str] = []
else:
    compile_args = [
        "-std=c++17",
        "-O3",
        "-g0",  # Python's own -g makes wheels ten times as large, and a quarter longer to compile
        "-fvisibility=hidden",
        "-fno-math-errno",
        "-Wall",
        "-Wextra",
        "-Wno-unused-function",
        "-Wno-unused-parameter",
    ]
    link_args = []
    if SANITIZE:
        compile_args += [f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g", "-O1"]
        if "fuzzer" in SANITIZE:  # clang's alone; the runtime that comes with Atheris checks neither of these two
            compile_args += ["-fno-sanitize=function,vptr"]
        link_args += [f"-fsanitize={SANITIZE}"]

# Every header is a dependency of every kernel: a change rebuilds them all, and the sdist holds them.
shared = sorted(str(path) for pattern in ("*.hpp", "*.pxd") for path in SOURCES.glob(pattern))

extensions = [
    Extension(
        f"engine._core.{path.stem}",
        [str(path)],
        language="c++",
        include_dirs=[str(SOURCES)],
        depends=shared,
        extra_compile_args=compile_args,
        extra_link_args=link_args,
    )
    for path in sorted(SOURCES.glob("*.pyx"))
]

setup(
    # The benchmarks travel in the wheel, where `engine bench` finds them. They are not a package to import from: pytest
    # collects them by path, here as there.
    packages=[*find_packages(include=["engine", "engine.*"]), "engine.benchmarks"],
    package_dir={"engine.benchmarks": "benchmarks"},
    # Each kernel is a file of its own: they compile side by side.
    options={"build_ext": {"parallel": True}},
    ext_modules=cythonize(
        extensions,
        include_path=[str(SOURCES)],
        compiler_directives={
            "language_level": "3",
            "boundscheck": False,
            "wraparound": False,
            "cdivision": True,
            "initializedcheck": False,
            "freethreading_compatible": True,
        },
    ),
)

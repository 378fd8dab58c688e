"""There is one door to the filesystem, ``engine/storage.py``; so tests can stand in it."""

import ast
import re

import pytest
from source_tree import engine_modules, shown, tree_of

DOOR = "engine.storage"

EXCEPTIONS = {
    ("engine._runtime.run", "tempfile"): "a run without state= keeps scratch files in a directory that ends with it",
    ("engine.stages.deduplicator", "tempfile"): "names the directory for a Deduplicator's runs without spill=",
    ("engine.cli.output", "os.open"): "standard output is pointed at the null device when its reader is gone",
    ("engine.testing.sink_contract", "tempfile"): "the state directory of a sink that is checked ends with the check",
    ("engine.cli.bench.session", "pathlib"): "finds the benchmarks beside the package, and writes the picture",
    ("engine.cli.bench.session", "tempfile"): "the work of the benchmarks, and what they measured until it is shown",
    ("engine.cli.commands", "pathlib"): "the type of path arguments; cyclopts reads it from the annotation",
    ("engine.cli.demo", "pathlib"): "finds the sample beside the module and makes the demo's directory",
    ("engine.cli.log", "pathlib"): "the type of path arguments; cyclopts reads it from the annotation",
    ("engine.cli.reference", "pathlib"): "puts the working directory on the path of imports, as python -m does",
}
"""What else touches files or paths, and why. An entry that is not needed any more has to go."""

MODULES = {"shutil", "tempfile", "pathlib", "mmap", "fcntl"}
CALLS = re.compile(
    r"os\.(open|fdopen|rename|renames|replace|unlink|remove|rmdir|removedirs|mkdir|makedirs|link|symlink|truncate"
    r"|ftruncate|pwrite|pwritev|writev|fsync|fdatasync|sync|chmod|chown|utime|mkfifo|listdir|scandir|walk)"
    r"|glob\.i?glob|(io\.)?open|(pa|pyarrow)\.(OSFile|memory_map)"
)


def touches(tree: ast.Module) -> list[tuple[int, str]]:
    """Line and name of everything in a module that reaches past the door."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, name.name) for name in node.names if name.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            found += [(node.lineno, module)] if module.split(".")[0] in MODULES else []
            found += [(node.lineno, name) for part in node.names if CALLS.fullmatch(name := f"{module}.{part.name}")]
        elif isinstance(node, ast.Attribute | ast.Name) and CALLS.fullmatch(ast.unparse(node)):
            found.append((node.lineno, ast.unparse(node)))
    return found


def test_only_storage_touches_files():
    lines = [
        f"{shown(path)}:{line}: {name}; the door to the filesystem is {DOOR}"
        for module, path in engine_modules().items()
        if module != DOOR
        for line, name in touches(tree_of(path))
        if (module, name) not in EXCEPTIONS
    ]
    assert not lines, "\n".join(lines)


def test_every_exception_is_needed():
    modules = engine_modules()
    idle = [
        f"{module}: {name} ({reason})"
        for (module, name), reason in EXCEPTIONS.items()
        if module not in modules or name not in {found for _, found in touches(tree_of(modules[module]))}
    ]
    assert not idle, "\n".join(idle)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("open('x')", "open"),
        ("import os\nos.open('x', 0)", "os.open"),
        ("import os\nf = os.rename", "os.rename"),
        ("from os import unlink", "os.unlink"),
        ("import shutil", "shutil"),
        ("def f():\n    import tempfile", "tempfile"),
        ("from pathlib import Path", "pathlib"),
        ("import pyarrow as pa\npa.OSFile('x')", "pa.OSFile"),
        ("with open('x') as file: pass", "open"),
    ],
)
def test_the_check_finds(text, name):
    assert [found for _, found in touches(ast.parse(text))] == [name]


def test_the_check_allows():
    text = (
        "import os\nos.path.join('a', 'b')\nstorage.open('x')\nclass A:\n    def open(self): return self.rename('a')\n"
    )
    assert touches(ast.parse(text)) == []

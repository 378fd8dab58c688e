"""Imports go one way: a room sees only the rooms above it in ``LAYERS``, and itself."""

import ast
import re

import pytest
from source_tree import ROOT, engine_modules, files, imports, kernels, shown, text_of, tree_of

LAYERS: list[tuple[str, ...]] = [
    ("engine.errors",),
    ("engine._core",),
    ("engine.nature",),
    (
        "engine.byte_size",
        "engine.path_argument",
        "engine.retry",
        "engine.progress",
        "engine.batch",
        "engine.background",
    ),
    ("engine.instrument", "engine.report"),
    ("engine.storage",),
    ("engine.log",),
    ("engine.source", "engine.stage", "engine.sink"),
    ("engine.sources", "engine.stages", "engine.sinks"),
    ("engine.graph",),
    ("engine.explanation",),
    ("engine.pipeline",),
    ("engine.checkpoint.manifest",),
    ("engine.checkpoint.protocol",),
    ("engine.checkpoint.fence",),
    ("engine.checkpoint.store",),
    ("engine.checkpoint.inspection", "engine.checkpoint.replaced"),
    ("engine._runtime",),
    ("engine.testing",),
    ("engine",),
    ("engine.cli",),
]
"""Rooms in one line do not see each other. A room is a module, or a package with all that is in it."""

ROOM_ONLY = {"engine.checkpoint"}
"""Packages that hold several rooms and nothing of their own."""

WHO_SEES_TESTING = {"engine.cli": {"engine.testing.workload", "engine.testing.simulate"}}
"""The demo makes its input with the generator that the tests use, and ``engine simulate`` is a tool for testing. Nobody
else sees that room."""

WHO_KNOWS_TRIO = {"engine._runtime", "engine.cli", "engine.stages.map", "engine.log.log", "engine.testing"}
"""``map`` runs the user's async functions and waits between attempts, the log has async calls beside its blocking ones;
everything else above the runtime is plain."""

ENTRY_POINTS = {"engine", "engine.cli.main", "engine.cli.log", "engine.testing"}
"""What users import or call by name, and commands that are loaded when they are called: nothing inside has to."""


def room_of(module: str) -> str | None:
    """The room of a module: the longest name in ``LAYERS`` that holds it. The façade holds itself only."""
    rooms = [room for layer in LAYERS for room in layer]
    inside = [room for room in rooms if module == room or (room != "engine" and module.startswith(f"{room}."))]
    return max(inside, key=len, default=None)


def layer_of(room: str) -> int:
    return next(number for number, layer in enumerate(LAYERS) if room in layer)


def complaints(tree: ast.Module, module: str, known: set[str]) -> list[tuple[int, str]]:
    """What a module imports that it must not see, by line."""
    room = room_of(module)
    if room is None:
        return [] if module in ROOM_ONLY else [(1, f"{module} has no place in LAYERS")]
    found: list[tuple[int, str]] = []
    for line, imported in imports(tree, module, known):
        if imported.split(".")[0] == "trio" and not {room, module} & WHO_KNOWS_TRIO:
            found.append((line, f"{module} imports trio"))
        if imported.split(".")[0] != "engine":
            continue
        seen = room_of(imported)
        if seen is None:
            found.append((line, f"{module} imports {imported}, which has no place in LAYERS"))
        elif seen == "engine.testing" and room != seen and imported not in WHO_SEES_TESTING.get(room, ()):
            found.append((line, f"{module} imports {imported}: nobody imports engine.testing"))
        elif seen != room and layer_of(seen) >= layer_of(room):
            found.append((line, f"{module} imports {imported}, which is not above it"))
    return found


def test_every_room_sees_only_the_rooms_above_it():
    modules = engine_modules()
    lines = [
        f"{shown(path)}:{line}: {text}"
        for module, path in modules.items()
        for line, text in complaints(tree_of(path), module, set(modules))
    ]
    assert not lines, "\n".join(lines)


def test_every_room_is_there():
    modules = engine_modules()
    rooms = [room for layer in LAYERS for room in layer]
    missing = [room for room in rooms if not any(module == room or module.startswith(f"{room}.") for module in modules)]
    assert not missing


def test_kernels_do_not_know_the_package():
    lines = [
        f"{shown(path)}:{number}: a kernel imports engine"
        for path in files("src", suffixes={".pyx", ".pxd", ".pxi"})
        for number, line in enumerate(text_of(path).splitlines(), 1)
        if re.match(r"\s*(from|c?import)\s+engine\b", line)
    ]
    assert kernels()
    assert not lines, "\n".join(lines)


def test_every_module_is_used():
    modules = engine_modules()
    used = {
        imported for module, path in modules.items() for _, imported in imports(tree_of(path), module, set(modules))
    }
    packages = {".".join(module.split(".")[:-1]) for module in modules}
    public = {module for module in modules if module.startswith("engine.testing.")}
    dead = sorted(set(modules) - used - packages - ENTRY_POINTS - public)
    lines = [f"{shown(modules[module])}:1: nothing imports {module}" for module in dead]
    assert not lines, "\n".join(lines)


@pytest.mark.parametrize(
    ("module", "text", "message"),
    [
        ("engine.errors", "import engine.batch", "not above it"),
        ("engine.stages.map", "from engine.sources.parquet_files import parquet", "not above it"),
        ("engine.stages.map", "from engine.sinks import parquet", "not above it"),
        ("engine.sinks.files", "def f():\n    from engine._runtime.run import execute", "not above it"),
        ("engine.checkpoint.manifest", "from engine.checkpoint import store", "not above it"),
        ("engine.checkpoint.protocol", "from . import store", "not above it"),
        ("engine.pipeline", "import engine", "not above it"),
        ("engine._runtime.run", "from engine.testing import workload", "nobody imports engine.testing"),
        ("engine.cli.demo", "from engine.testing.check import check_sink", "nobody imports engine.testing"),
        ("engine.checkpoint.store", "import trio", "imports trio"),
        ("engine.misplaced", "", "has no place"),
        ("engine.cli.demo", "import engine.misplaced", "has no place"),
    ],
)
def test_the_check_finds(module, text, message):
    known = {*engine_modules(), "engine.checkpoint.store"}
    assert [found for _, found in complaints(ast.parse(text), module, known) if message in found]


def test_the_check_allows():
    known = set(engine_modules())
    text = "import engine\nfrom engine.testing.workload import generate\nfrom engine.cli import main\nimport trio, os"
    assert complaints(ast.parse(text), "engine.cli.demo", known) == []
    assert (ROOT / "engine").is_dir()

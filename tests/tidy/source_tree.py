"""The project's own files, for the tests that read them: which there are, what they import, where they say it."""

import ast
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT_SUFFIXES = {".py", ".pyi", ".pyx", ".pxd", ".hpp", ".md", ".toml", ".yml", ".yaml", ".ini", ".cfg"}


def shown(path: Path) -> str:
    """A path as messages have it: from the root of the project."""
    return path.relative_to(ROOT).as_posix()


def files(*rooms: str, suffixes: set[str] | None = None) -> list[Path]:
    """The project's files below these rooms, but for what tools and builds left there."""
    found: list[Path] = []
    for room in rooms:
        start = ROOT / room
        found += [start] if start.is_file() else sorted(start.rglob("*"))
    return [
        path
        for path in found
        if path.is_file()
        and (suffixes is None or path.suffix in suffixes)
        and not any(part == "__pycache__" or part.startswith(".") for part in path.relative_to(start_of(path)).parts)
    ]


def start_of(path: Path) -> Path:
    """The room at the root of the project that a file is in; its own name may begin with a dot."""
    return ROOT / path.relative_to(ROOT).parts[0]


def python_files(*rooms: str) -> list[Path]:
    """The Python modules below these rooms."""
    return files(*rooms, suffixes={".py"})


@cache
def text_of(path: Path) -> str:
    """A file's text, in the encoding that it declares."""
    if path.suffix == ".py":
        with tokenize.open(path) as opened:
            return opened.read()
    return path.read_text("utf-8")


@cache
def tree_of(path: Path) -> ast.Module:
    """A module's syntax tree."""
    return ast.parse(text_of(path), str(path))


def module_name(path: Path) -> str:
    """``engine.sources.parquet_files`` for its file; a package has the name of its room."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def engine_modules() -> dict[str, Path]:
    """Every Python module of the package, by name."""
    return {module_name(path): path for path in python_files("engine")}


def kernels() -> list[Path]:
    """The source of every kernel."""
    return sorted((ROOT / "src").glob("*.pyx"))


def imports(tree: ast.Module, module: str, known: set[str]) -> Iterator[tuple[int, str]]:
    """Line and name of every module that ``module`` imports, at its head or within functions.

    ``from engine.checkpoint import manifest`` imports ``engine.checkpoint.manifest`` where that is one of ``known``.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = module.split(".")[: -node.level]
                base = ".".join([*above, base] if base else above)
            for name in node.names:
                inner = f"{base}.{name.name}"
                yield node.lineno, inner if inner in known else base

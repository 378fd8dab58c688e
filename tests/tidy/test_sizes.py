"""How large files and functions may be, and that every kernel has its stub and its tests."""

import ast

from source_tree import ROOT, files, kernels, python_files, shown, text_of, tree_of

FILE_LINES = 600
FUNCTION_LINES = 70
ROOMS = ("engine", "tests", "benchmarks", "setup.py")
NAMELESS_ROOMS = {"util", "utils", "common", "helper", "helpers", "manager", "managers", "misc", "tools"}


def long_functions(tree: ast.Module) -> list[tuple[int, str]]:
    """Line and message of every function that is too long, its decorators not counted."""
    return [
        (node.lineno, f"{node.name} has {length} lines, at most {FUNCTION_LINES} are allowed")
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or node.lineno) - node.lineno + 1) > FUNCTION_LINES
    ]


def test_no_file_is_too_long():
    suffixes = {".py", ".pyi", ".pyx", ".pxd", ".hpp"}
    lines = [
        f"{shown(path)}:{count}: {count} lines, at most {FILE_LINES} are allowed"
        for path in files(*ROOMS, "src", suffixes=suffixes)
        if (count := len(text_of(path).splitlines())) > FILE_LINES
    ]
    assert not lines, "\n".join(lines)


def test_no_function_is_too_long():
    lines = [
        f"{shown(path)}:{line}: {text}" for path in python_files(*ROOMS) for line, text in long_functions(tree_of(path))
    ]
    assert not lines, "\n".join(lines)


def test_every_room_has_a_name_that_says_something():
    lines = [
        f"{shown(path)}:1: no room or module is called {word}"
        for path in files("engine", "src", "tests", "benchmarks")
        for word in {part.split(".")[0] for part in path.relative_to(ROOT).parts} & NAMELESS_ROOMS
    ]
    assert not lines, "\n".join(lines)


def test_every_module_says_what_it_is_for():
    lines = [
        f"{shown(path)}:1: the head of the file says nothing"
        for path in python_files(*ROOMS)
        if text_of(path).strip() and not ast.get_docstring(tree_of(path))
    ]
    assert not lines, "\n".join(lines)


def test_every_kernel_has_its_stub_and_its_tests():
    assert kernels()
    lines = [
        f"{shown(kernel)}:1: there is no {wanted}"
        for kernel in kernels()
        for wanted in (f"engine/_core/{kernel.stem}.pyi", f"tests/core/test_{kernel.stem}.py")
        if not (ROOT / wanted).is_file()
    ]
    assert not lines, "\n".join(lines)


def test_every_stub_has_its_kernel():
    names = {kernel.stem for kernel in kernels()}
    stubs = sorted((ROOT / "engine" / "_core").glob("*.pyi"))
    lines = [f"{shown(stub)}:1: there is no src/{stub.stem}.pyx" for stub in stubs if stub.stem not in names]
    assert not lines, "\n".join(lines)


def test_the_check_finds_a_long_function():
    too_long = "def f():\n" + "    pass\n" * FUNCTION_LINES
    assert long_functions(ast.parse(too_long)) == [(1, "f has 71 lines, at most 70 are allowed")]
    assert long_functions(ast.parse(too_long.removesuffix("    pass\n"))) == []
    assert long_functions(ast.parse(f"class A:\n    async {too_long.replace('    pass', '        pass')}"))

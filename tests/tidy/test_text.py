"""What no file may say or do: unfinished work, swallowed errors, waiting by the clock, names of one machine."""

import ast
import re

import pytest
from source_tree import TEXT_SUFFIXES, files, python_files, shown, text_of, tree_of

ROOMS = ("engine", "src", "tests", "benchmarks", "setup.py", "pyproject.toml", "README.md", ".ci", ".github")

# The words are taken apart here, so that this file does not hold them.
PHRASES = {
    r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b": "unfinished work",
    r"(?<![\w.$}])/(tmp|home|root|work|Users)/\w": "a path of one machine",
    r"\b(this|the) (iss" + r"ue|work" + r"place|pro" + r"mpt)\b|\biss" + r"ue \d": "how the text came about",
}

ENVIRONMENT = {
    "engine/cli/progress_view.py": "TERM says what the terminal can do, NO_COLOR and COLUMNS what its owner wants",
}
"""Who reads the environment, and why. Settings are arguments."""

LEFT_OUT = {
    ("tests/stress/conftest.py", "a test is left out"): "a plain user may lack spin; in CI the same line fails",
    ("tests/sinks/conftest.py", "a test is left out"): "a plain user may lack PostgreSQL; in CI the line above fails",
    ("tests/crash/conftest.py", "a test is left out"): "a plain user may lack strace; in CI the line above fails",
}
"""Which tests may be left out, and why."""


def phrases(text: str) -> list[tuple[int, str]]:
    """Line and message of every forbidden phrase."""
    return [
        (number, f"{meaning}: {match[0]}")
        for number, line in enumerate(text.splitlines(), 1)
        for pattern, meaning in PHRASES.items()
        if (match := re.search(pattern, line))
    ]


def _dotted(node: ast.expr) -> str:
    return ast.unparse(node) if isinstance(node, ast.Name | ast.Attribute) else ""


def _swallows(handler: ast.ExceptHandler) -> bool:
    """Whether it catches everything and does nothing."""
    broad = handler.type is None or _dotted(handler.type) in ("Exception", "BaseException")
    return broad and all(isinstance(step, ast.Pass | ast.Continue) or _is_ellipsis(step) for step in handler.body)


def _is_ellipsis(step: ast.stmt) -> bool:
    return isinstance(step, ast.Expr) and isinstance(step.value, ast.Constant) and step.value.value is ...


def deeds(tree: ast.Module) -> list[tuple[int, str]]:
    """Line and message of every forbidden deed in any Python file."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and _swallows(node):
            found.append((node.lineno, "an error is swallowed"))
        elif isinstance(node, ast.Call) and _dotted(node.func).endswith("suppress"):
            broad = [name for name in map(_dotted, node.args) if name in ("Exception", "BaseException")]
            found += [(node.lineno, "an error is swallowed") for _ in broad]
        elif isinstance(node, ast.Raise) and node.exc is not None and "NotImplemented" in ast.unparse(node.exc):
            found.append((node.lineno, "unfinished work: a stub"))
    return found


def deeds_in_a_test(tree: ast.Module) -> list[tuple[int, str]]:
    """Line and message of every deed that is forbidden in tests."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        name = _dotted(node) if isinstance(node, ast.expr) else ""
        if name == "time.sleep" or _imports_sleep(node):
            found.append((node.lineno, "a test waits by the clock"))
        if name in ("pytest.skip", "pytest.importorskip", "pytest.mark.skip", "pytest.mark.skipif", "unittest.skip"):
            found.append((node.lineno, "a test is left out"))
    return found


def _imports_sleep(node: ast.AST) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module == "time" and any(n.name == "sleep" for n in node.names)


def test_no_forbidden_phrase():
    everything = [
        path
        for path in files(*ROOMS)
        if path.suffix in TEXT_SUFFIXES or (path.suffix == "" and path.parent.name == ".ci")
    ]
    lines = [f"{shown(path)}:{line}: {text}" for path in everything for line, text in phrases(text_of(path))]
    assert not lines, "\n".join(lines)


def test_no_forbidden_deed():
    lines = [
        f"{shown(path)}:{line}: {text}"
        for path in python_files("engine", "tests", "benchmarks", "setup.py")
        for line, text in deeds(tree_of(path))
    ]
    lines += [
        f"{shown(path)}:{line}: {text}"
        for path in python_files("tests")
        for line, text in deeds_in_a_test(tree_of(path))
        if (shown(path), text) not in LEFT_OUT
    ]
    assert not lines, "\n".join(lines)


def test_nobody_is_tuned_by_the_environment():
    lines = [
        f"{shown(path)}:{node.lineno}: a setting is an argument, not {ast.unparse(node)}"
        for path in python_files("engine", "benchmarks")
        if shown(path) not in ENVIRONMENT
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.environ", "os.getenv", "os.putenv")
    ]
    assert not lines, "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [
        "x = 1  # TO" + "DO: more",
        "path = '/ho" + "me/somebody/x'",
        "see /tm" + "p/scratch",
        "as the iss" + "ue says",
        "fixes iss" + "ue 2",
    ],
)
def test_the_check_finds_a_phrase(text):
    assert phrases(text)


@pytest.mark.parametrize(
    "text", ["/etc/passwd", "state/tmp/x", "the root/path", "$HOME/tmp/x", "https://x.org/tmp/y", ""]
)
def test_the_check_allows_a_phrase(text):
    assert phrases(text) == []


@pytest.mark.parametrize(
    "text",
    [
        "try:\n    f()\nexcept Exception:\n    pass",
        "try:\n    f()\nexcept:\n    ...",
        "for x in y:\n    try:\n        f()\n    except BaseException:\n        continue",
        "with contextlib.suppress(Exception): f()",
        "raise NotImplementedError",
        "raise NotImplementedError('later')",
    ],
)
def test_the_check_finds_a_deed(text):
    assert deeds(ast.parse(text))


@pytest.mark.parametrize("text", ["import time\ntime.sleep(1)", "from time import sleep", "pytest.skip('later')"])
def test_the_check_finds_a_deed_in_a_test(text):
    assert deeds_in_a_test(ast.parse(text))


def test_the_check_allows_deeds():
    assert deeds(ast.parse("try:\n    f()\nexcept OSError:\n    pass")) == []
    assert deeds(ast.parse("try:\n    f()\nexcept Exception as error:\n    raise X from error")) == []
    assert deeds_in_a_test(ast.parse("import trio\nasync def f(): await trio.sleep(1)")) == []

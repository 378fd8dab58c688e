"""What users may import: every name is there, says what it does, and has one path."""

import importlib
import inspect
from types import ModuleType

import pytest
from source_tree import ROOT, engine_modules, shown

PUBLIC = [
    *("engine", "engine.errors", "engine.sources", "engine.sinks", "engine.testing", "engine.testing.workload"),
    *("engine.testing.storage", "engine.testing.storage_faults", "engine.testing.crash_states"),
    "engine.testing.simulate",
]
"""The modules that users import; all others are the engine's own affair."""

TWO_PATHS = {("engine", "EngineError")}
"""The base of all errors is caught so often that the façade has it too."""


@pytest.fixture(params=PUBLIC)
def public(request):
    return importlib.import_module(request.param)


def test_every_exported_name_is_there(public):
    assert public.__all__
    assert list(public.__all__) == sorted(set(public.__all__)), f"{public.__name__}.__all__ is not sorted"
    missing = [name for name in public.__all__ if not hasattr(public, name)]
    assert not missing


def test_every_exported_name_says_what_it_does(public):
    silent = [
        f"{public.__name__}.{name}"
        for name in public.__all__
        if not (inspect.getdoc(getattr(public, name)) or "").strip()
    ]
    assert not silent


def test_every_public_method_says_what_it_does(public):
    silent = [
        f"{public.__name__}.{name}.{method}"
        for name in public.__all__
        if inspect.isclass(made := getattr(public, name)) and made.__module__.startswith("engine")
        for method, value in vars(made).items()
        if not method.startswith("_") and callable(value) and not (inspect.getdoc(value) or "").strip()
    ]
    assert not silent


def test_every_name_has_one_path():
    paths: dict[int, list[str]] = {}
    for module in map(importlib.import_module, PUBLIC):
        for name in module.__all__:
            value = getattr(module, name)
            if not isinstance(value, ModuleType) and (module.__name__, name) not in TWO_PATHS:
                paths.setdefault(id(value), []).append(f"{module.__name__}.{name}")
    assert [names for names in paths.values() if len(names) > 1] == []


def test_no_public_name_is_a_module_too(public):
    assert public.__file__ is not None
    modules = {module for module in engine_modules() if module.rpartition(".")[0] == public.__name__}
    pairs = [
        f"{public.__name__}.{name}"
        for name in public.__all__
        if not isinstance(getattr(public, name), ModuleType) and f"{public.__name__}.{name}" in modules
    ]
    assert not pairs


def test_what_a_module_exports_it_has():
    """Of every module, public or not."""
    lines: list[str] = []
    for name, path in engine_modules().items():
        module = importlib.import_module(name)
        missing = [each for each in getattr(module, "__all__", ()) if not hasattr(module, each)]
        lines += [f"{shown(path)}:1: __all__ names {each}, which is not there" for each in missing]
    assert not lines, "\n".join(lines)


def test_the_package_is_typed():
    assert (ROOT / "engine" / "py.typed").is_file()

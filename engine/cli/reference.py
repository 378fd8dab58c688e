"""Finds the pipeline that ``module:name`` means; the working directory is on the import path."""

import importlib
import inspect
import sys
import traceback
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType

from engine.errors import EngineError
from engine.pipeline import Pipeline

__all__ = ["BadReferenceError", "load_pipeline"]


class BadReferenceError(ValueError):
    """There is no pipeline where the command line says. Mend the argument."""


def load_pipeline(reference: str) -> Pipeline:
    """The pipeline that ``reference`` means: a value, or what a function without arguments returns.

    Raises BadReferenceError where it means none. What the module or the function raises passes through; an EngineError
    is given a note with the line of the user's file.
    """
    module_name, separator, attribute = reference.partition(":")
    if not separator or not module_name or not attribute:
        raise BadReferenceError(
            f'expected module:name, such as "jobs:pipeline", found "{reference}"{_as_module(module_name)}'
        )
    try:
        value = _attribute(_module(module_name, attribute), module_name, attribute)
        if not isinstance(value, Pipeline) and callable(value):
            value = _call(value, reference)
    except EngineError as error:
        if place := _place_of(error):
            error.add_note(f"  {place}, while loading {reference}")
        raise
    if not isinstance(value, Pipeline):
        raise BadReferenceError(
            f"{reference} is {_article(type(value).__name__)}, not a Pipeline or a function that returns one"
        )
    return value


def _module(name: str, attribute: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    if name.endswith(".py") or "/" in name:
        raise BadReferenceError(f'"{name}" is not the name of a module{_as_module(name, attribute)}')
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # A module that is found but misses one of its own imports is the user's to mend, with the traceback.
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise
        beside = [path.stem for path in Path(here).glob("*.py")]
        raise BadReferenceError(
            f'no module "{error.name}" in {here} or on the import path{_nearest(name, beside)}'
        ) from None


def _attribute(module: ModuleType, module_name: str, attribute: str) -> object:
    value: object = module
    for name in attribute.split("."):
        if not hasattr(value, name):
            pipelines = [key for key, found in vars(module).items() if isinstance(found, Pipeline)]
            listed = f" (its pipelines: {', '.join(pipelines)})" if pipelines else ""
            raise BadReferenceError(f'module "{module_name}" has no "{attribute}"{_nearest(name, dir(value))}{listed}')
        value = getattr(value, name)
    return value


def _call(function: object, reference: str) -> object:
    assert callable(function)
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        raise BadReferenceError(f"{reference} cannot be called without arguments: {error}") from None
    except ValueError:
        pass  # a callable without a signature: calling it tells
    return function()


def _place_of(error: BaseException) -> str | None:
    """The innermost line outside this package."""
    package = str(Path(__file__).parent.parent)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(package)]
    frames = [frame for frame in frames if not frame.filename.startswith("<")]
    importing = importlib.__file__
    frames = [frame for frame in frames if frame.filename != importing]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else None


def _as_module(name: str, attribute: str = "pipeline") -> str:
    if not name.endswith(".py") and "/" not in name:
        return ""
    path = Path(name).with_suffix("")
    return f'; did you mean "{".".join(path.parts)}:{attribute}"?' if not path.is_absolute() else ""


def _nearest(name: str, names: Iterable[str]) -> str:
    nearest = get_close_matches(name, [other for other in names if not other.startswith("_")], n=1)
    return f'; did you mean "{nearest[0]}"?' if nearest else ""


def _article(noun: str) -> str:
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"

"""Paths as people give them: a text or a ``Path``."""

import os
from typing import Any

__all__ = ["path_fault"]


def path_fault(path: Any, name: str = "path") -> str | None:
    """What is wrong with ``path``, given as ``name``; None where nothing is. Touches nothing."""
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str) or "\0" in text:
        return f"the {name} must be a text or a Path, found {path!r}"
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return f"the {name} holds what no file name can: {text!r}"
    return None if text else f"the {name} is empty"

"""Sizes in bytes as people write them: ``512MiB``, ``2GB``, ``65536``."""

import re

from engine.errors import PipelineError

__all__ = ["ByteSize", "format_bytes", "parse_bytes"]

ByteSize = int | str

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def parse_bytes(size: ByteSize, *, name: str = "memory") -> int:
    """The number of bytes that ``size`` says. Raises PipelineError where it says none, or none above zero."""
    if isinstance(size, int) and not isinstance(size, bool):
        count = size
    else:
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", size) if isinstance(size, str) else None
        unit = _UNITS.get(match.group(2).upper()) if match else None
        if match is None or unit is None:
            raise PipelineError(f'{name}: expected a size such as "512MiB" or a number of bytes, found {size!r}')
        count = int(float(match.group(1)) * unit)
    if count <= 0:
        raise PipelineError(f"{name}: expected a size above zero, found {size!r}")
    return count


def format_bytes(count: int) -> str:
    """``count`` in MiB, as the report shows it."""
    return f"{count / 2**20:,.0f} MiB" if count >= 2**20 else f"{count / 2**10:,.0f} KiB"

"""``engine log``: looking at a durable log and reading it from a shell. Takes no lock and changes nothing."""

import io
import json
import sys
from base64 import b64encode
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import pyarrow as pa
import pyarrow.ipc as ipc
from cyclopts import App, Parameter

from engine.byte_size import format_bytes
from engine.errors import LogError
from engine.log.log import Log
from engine.log.verification import verify as verify_log
from engine.storage import Storage

__all__ = ["app"]

app = App(name="log", help="Look at a durable log, and read it.", help_format="plaintext")

Path_ = Annotated[Path, Parameter(help="The directory of the log.")]
Partition = Annotated[int, Parameter(help="Which partition.")]
Place = Annotated[str | None, Parameter(help="An offset, or a time such as 2026-03-01T12:00.")]


@app.command
def ls(path: Path_, /) -> None:
    """List partitions and segments with their rows and sizes."""
    with _opened(path) as log:
        print(f"{'partition':>9}  {'rows':>25}  {'size':>10}  segment")
        for partition in range(log.partitions):
            bounds = log.bounds(partition=partition)
            stops = [*(base for base, _ in bounds[1:]), log.end(partition=partition)]
            for (base, segment), stop in zip(bounds, stops, strict=False):
                size = format_bytes(Storage().size(segment))
                print(f"{partition:>9}  {f'{base:,} - {stop:,}':>25}  {size:>10}  {Path(segment).name}")


@app.command
def show(path: Path_, /) -> None:
    """Show what the log is: its id, schema, the rows that it keeps, and how far each group is."""
    with _opened(path) as log:
        print(f"log {log.id}, {log.partitions} {'partition' if log.partitions == 1 else 'partitions'}")
        for field in log.schema or []:
            print(f"  {_one_line(field.name)}: {field.type}{'' if field.nullable else ' not null'}")
        for partition in range(log.partitions):
            print(f"partition {partition}: rows {log.start(partition=partition):,} to {log.end(partition=partition):,}")
        for name, group in log.groups.items():
            behind = [log.end(partition=number) - offset for number, offset in enumerate(group.offsets())]
            at = ", ".join(f"{offset:,}" for offset in group.offsets())
            print(f"group {_one_line(name)}: {sum(behind):,} rows behind, at {at}")


@app.command
def verify(path: Path_, /) -> None:
    """Read every byte and compare it with its checksum. Exit code 1 where something durable is damaged."""
    damaged = 0
    with _opened(path) as log:
        for found in verify_log(log, Storage()):
            at = " at" if (found.damage or "").startswith("byte ") else ":"
            state = "sound" if found.damage is None else f"DAMAGED{at} {found.damage}"
            torn = f", and {found.torn_bytes:,} bytes behind them were never acknowledged" if found.torn_bytes else ""
            print(f"partition {found.partition} {found.path}: rows {found.start:,} to {found.stop:,} {state}{torn}")
            damaged += found.damage is not None
    if damaged:
        raise LogError(f"{path}: {damaged} damaged {'segment' if damaged == 1 else 'segments'}; nothing was changed.")


@app.command
def tail(
    path: Path_,
    /,
    *,
    start: Annotated[int | None, Parameter(help="The first offset; without it, what comes from now on.")] = None,
    partition: Partition = 0,
) -> None:
    """Print rows as JSON, a line each, as they become durable, until Ctrl-C."""
    with _opened(path) as log:
        for rows in log.tail(start, partition=partition):
            _print_rows([rows])
            sys.stdout.flush()


@app.command
def replay(
    path: Path_,
    /,
    *,
    start: Place = None,
    stop: Place = None,
    partition: Partition = 0,
    format: Annotated[
        Literal["json", "arrow"], Parameter(help="A line of JSON a row, or an Arrow IPC stream.")
    ] = "json",
) -> None:
    """Write the rows from one offset or time to another to standard output."""
    with _opened(path) as log:
        rows = log.read(_place(start) or 0, _place(stop), partition=partition)
        if format == "json":
            _print_rows(rows)
            return
        if log.schema is None:
            raise LogError(f"{path} has no rows and no schema yet")
        with ipc.new_stream(cast(io.IOBase, sys.stdout.buffer), log.schema) as writer:
            for batch in rows:
                writer.write_batch(batch)


def _one_line(name: str) -> str:
    """A name as it is, but for what would end the line or drive the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def _place(text: str | None) -> int | datetime | None:
    if text is None or (text.isascii() and text.isdigit()):
        return None if text is None else int(text)
    try:
        moment = datetime.fromisoformat(text)
        return moment if moment.tzinfo is not None else moment.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise LogError(f"{text!r} is no offset and no time; 12000 is one, and 2026-03-01T12:00") from error


def _opened(path: Path) -> Log:
    """The log, to be read. Raises LogError."""
    if not Storage().exists(str(path / "LOG")):
        raise LogError(
            f"{path} is no log: nothing to read.\n"
            "  Give the directory of one; `engine run` makes one for a pipeline that writes to a log."
        )
    return Log(path, write=False)


def _print_rows(batches: Iterable[pa.RecordBatch]) -> None:
    for line in _lines(batches):
        print(line)


def _lines(batches: Iterable[pa.RecordBatch]) -> Iterator[str]:
    for batch in batches:
        if len(set(batch.schema.names)) < batch.num_columns:
            raise LogError(
                "rows cannot be shown as JSON: two columns have one name.\n"
                "  `engine log replay --format arrow` writes them as they are."
            )
        try:
            found = batch.to_pylist()
        except (pa.ArrowException, ValueError, OverflowError) as error:
            raise LogError(
                f"rows cannot be shown as JSON: {error}.\n  `engine log replay --format arrow` writes them as they are."
            ) from error
        for row in found:
            yield json.dumps(_finite(row), default=_plain, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    """``value`` with null in place of floats that JSON lacks: NaN and the infinities."""
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _plain(value: Any) -> str:
    """What JSON has no form for: bytes in base64, times as ISO 8601, the rest as text."""
    if isinstance(value, bytes):
        return b64encode(value).decode("ascii")
    return value.isoformat() if hasattr(value, "isoformat") else str(value)

"""What ``engine checkpoint`` prints: the state of pipelines for people, and for programs as JSON.

Laws
    - Only reads, also beside a run that owns the state.
    - Seeds are secret: they are never shown.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from engine.byte_size import format_bytes
from engine.checkpoint.inspection import Inspection, Verification, inspect, state_directories, verify
from engine.checkpoint.manifest import Commit
from engine.checkpoint.store import taken_by
from engine.errors import CorruptState, StateError
from engine.storage import Storage

__all__ = ["list_states", "show_state", "verify_states"]

_COLUMNS = ("pipeline", "epoch", "commit", "term", "rows in", "rows out", "state", "owner")
_LINE_WIDTH = 160


def list_states(directory: str) -> None:
    """Print a line for each pipeline. Raises StateError; CorruptState at the end where a manifest is damaged."""
    storage = Storage()
    rows: list[tuple[str, ...]] = []
    failures: list[StateError] = []
    for path in state_directories(storage, directory):
        try:
            rows.append(_row(inspect(storage, path)))
        except StateError as error:
            failures.append(error)
    for line in _table([_COLUMNS, *rows]) if rows else ():
        print(line)
    if failures:
        for other in failures[1:]:
            failures[0].add_note(f"{type(other).__name__}: {other}")
        raise failures[0]


def show_state(directory: str, *, as_json: bool) -> None:
    """Print the last COMMIT of a pipeline. Raises StateError, also where there is more than one pipeline."""
    storage = Storage()
    paths = state_directories(storage, directory)
    if len(paths) > 1:
        raise StateError(f"{directory}: holds {len(paths)} pipelines; name one of them: {', '.join(paths)}")
    inspection = inspect(storage, paths[0])
    if as_json:
        print(json.dumps(_as_values(inspection), indent=2))
        return
    for line in _description(inspection):
        print(line)


def verify_states(directory: str) -> None:
    """Print for each file of each pipeline whether it is sound. Raises CorruptState at the end where one is not."""
    storage = Storage()
    damaged: list[tuple[str, int | None]] = []
    files = 0
    for path in state_directories(storage, directory):
        try:
            verification = verify(storage, path)
        except CorruptState as error:
            print(f"damaged  {error}")
            damaged.append((error.path, error.offset))
            files += 1
            continue
        for line in _verdicts(verification):
            print(line)
        files += 1 + len(verification.files)
        damaged += [(file.path, file.offset) for file in verification.damaged]
    if damaged:
        first, offset = damaged[0]
        where = "" if offset is None else f" at byte {offset:,}"
        raise CorruptState(
            f"{directory}: damaged: {len(damaged):,} of {_count(files)} (first: {first}{where}).\n"
            "  Nothing was changed. Rebuild files of stages: engine checkpoint repair MODULE:PIPELINE --state DIR."
            " Or bring back a whole copy, or begin anew with another state= and output.",
            path=first,
            offset=offset,
        )


def _row(inspection: Inspection) -> tuple[str, ...]:
    commit = inspection.last_commit
    term = inspection.term.term if inspection.term is not None else "-"
    if commit is None:
        return (inspection.pipeline, "-", "none yet", term, "-", "-", _size(inspection), _owner(inspection))
    counts = (f"{commit.counters.get(name, 0):,}" for name in ("rows_in", "rows_out"))
    final = "FINAL" if inspection.final else "not yet FINAL"
    return (inspection.pipeline, str(commit.epoch), final, term, *counts, _size(inspection), _owner(inspection))


def _table(rows: list[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _size(inspection: Inspection) -> str:
    states = inspection.last_commit.states.values() if inspection.last_commit is not None else ()
    files = [file for lanes in states for state in lanes if state is not None for file in _files(state)]
    size_bytes = inspection.manifest_bytes + sum(file["size_bytes"] for file in files)
    return f"{format_bytes(size_bytes)} in {_count(1 + len(files))}"


def _count(files: int) -> str:
    return "1 file" if files == 1 else f"{files:,} files"


def _files(state: Any) -> Iterator[dict[str, Any]]:
    """The files that a stage's state names, wherever in it they stand."""
    if isinstance(state, dict):
        if isinstance(state.get("file"), str) and isinstance(state.get("size_bytes"), int):
            yield state
        for value in state.values():
            yield from _files(value)
    elif isinstance(state, list):
        for value in state:
            yield from _files(value)


def _owner(inspection: Inspection) -> str:
    if inspection.owner is None or inspection.owned is False:
        return "nobody"
    doubt = "" if inspection.owned else ", if it still runs"
    return f"{taken_by(inspection.owner)}{doubt}"


def _description(inspection: Inspection) -> Iterator[str]:
    commit = inspection.last_commit
    yield f"{inspection.pipeline}: {_standing(inspection)}"
    yield f"  path         {inspection.path}"
    yield f"  owner        {_owner(inspection)}"
    yield f"  incarnation  {inspection.incarnation}"
    torn = f", and a torn tail of {inspection.torn_bytes:,}" if inspection.torn_bytes else ""
    yield f"  manifest     {inspection.manifest} ({inspection.manifest_bytes:,} bytes{torn})"
    if inspection.term is not None:
        yield f"  term         {inspection.term.term}, from epoch {inspection.term.first_epoch}"
    if commit is not None:
        yield from _commit_lines(commit)


def _standing(inspection: Inspection) -> str:
    commit = inspection.last_commit
    if commit is None:
        return "no commit yet"
    standing = "published, FINAL" if inspection.final else "the next run publishes it again: there is no FINAL"
    return f"committed through epoch {commit.epoch} ({standing})"


def _commit_lines(commit: Commit) -> Iterator[str]:
    yield f"  commit       epoch {commit.epoch}, written in term {commit.term}"
    yield "  counters"
    for name, count in sorted(commit.counters.items()):
        yield f"    {name}  {count:,}"
    yield "  offsets"
    for name, offset in sorted(commit.offsets.items()):
        yield f"    {name}  {_short(offset)}"
    yield "  states"
    for stage, states in sorted(commit.states.items()):
        for partition, state in enumerate(states):
            files = [] if state is None else list(_files(state))
            size_bytes = sum(file["size_bytes"] for file in files)
            yield f"    {stage}, partition {partition}  {_count(len(files))}, {format_bytes(size_bytes)}"
            for file in files:
                yield f"      {file['file']}  {file['size_bytes']:,} bytes"
    yield f"  handles      {len(commit.handles):,}"
    for handle in commit.handles:
        yield f"    {_short(handle)}"
    yield "  fingerprint"
    for name, value in sorted(commit.fingerprint.items()):
        yield f"    {name}  {_short(value)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _LINE_WIDTH else f"{text[:_LINE_WIDTH]} … ({len(text):,} characters)"


def _as_values(inspection: Inspection) -> dict[str, Any]:
    owner = inspection.owner
    held = owner is not None and inspection.owned is not False
    since = owner.since.isoformat() if owner is not None and owner.since is not None else None
    commit = None if inspection.last_commit is None else asdict(inspection.last_commit)
    if commit is not None:
        commit["states"] = _without_seeds(commit["states"])
    return {
        "pipeline": inspection.pipeline,
        "path": inspection.path,
        "incarnation": inspection.incarnation,
        "manifest": {
            "file": inspection.manifest,
            "size_bytes": inspection.manifest_bytes,
            "torn_bytes": inspection.torn_bytes,
        },
        "owner": {"pid": owner.pid, "host": owner.host, "since": since} if owner is not None and held else None,
        "term": None if inspection.term is None else asdict(inspection.term),
        "final": inspection.final,
        "commit": commit,
    }


def _without_seeds(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_seeds(inner) for name, inner in value.items() if name != "seed"}
    return [_without_seeds(inner) for inner in value] if isinstance(value, list) else value


def _verdicts(verification: Verification) -> Iterator[str]:
    inspection = verification.inspection
    yield f"{inspection.pipeline}: {_standing(inspection)}"
    yield f"  sound    {inspection.manifest}  {inspection.manifest_bytes:,} bytes"
    if inspection.torn_bytes:
        yield (
            f"  torn     {inspection.manifest}  {inspection.torn_bytes:,} bytes from byte "
            f"{inspection.manifest_bytes:,} on were never acknowledged; the next run puts them aside"
        )
    for file in verification.files:
        if file.problem is None:
            yield f"  sound    {file.path}  {file.size_bytes:,} bytes"
        else:
            yield f"  damaged  {file.problem}"

"""The graph of a pipeline as a value: what it reads, does and writes, and whether that fits together.

Laws
    - Nothing here runs the pipeline: schemas come from footers and headers, and from functions called on zero rows.
    - Every fault is found at once, as far as one does not hide another.
"""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from engine.errors import EngineError, PipelineError
from engine.sink import ChecksSchema, Guarantee, OutputFiles, Sink
from engine.source import Source
from engine.stage import Stage
from engine.stages.dedup import Dedup
from engine.stages.filter import Filter
from engine.stages.hash_partitioner import KeyBy

__all__ = ["Graph"]


@dataclass(frozen=True, eq=False, slots=True)
class Graph:
    """Sources, the stages behind them in order, and the sink (None: rows are collected)."""

    sources: tuple[Source, ...] = ()
    stages: tuple[Stage | KeyBy, ...] = ()
    sink: Sink | None = None

    @property
    def partitions(self) -> int:
        """How many partitions leave: those of ``key_by``, or one."""
        return next((stage.partitions for stage in self.stages if isinstance(stage, KeyBy)), 1)

    def schemas(self) -> list[pa.Schema]:
        """The schema of the sources' rows, then that behind each stage. Raises EngineError at the first fault."""
        faults: list[str] = []
        schemas = self._schemas(faults)
        if faults:
            raise PipelineError(faults)
        return schemas

    def faults(self, *, durable: bool | None = None) -> list[str]:
        """Everything that is wrong, a line each. ``durable``: whether there will be a state (None: unknown)."""
        faults: list[str] = []
        schemas = self._schemas(faults)
        names = [source.name for source in self.sources if getattr(source, "id", "") is not None]
        faults += [f"read: two sources are both {name}; give each its own" for name in _repeated(names)]
        faults += [f"{name}: stands twice in the pipeline" for name in _repeated([s.name for s in self._stateful()])]
        faults += self._dedup_behind_key_by()
        faults += self._output(schemas[-1] if len(schemas) > len(self.stages) else None)
        faults += self._durability(durable)
        return faults

    def fingerprint(self) -> dict[str, Any]:
        """What must stay the same for a state to be resumed: sources, dedups, partitions, sink."""
        return {
            "sources": [source.name for source in self.sources],
            "stages": [[type(stage).__name__.lower(), stage.fingerprint()] for stage in self._stateful()],
            "sink": None if self.sink is None else self.sink.name,
        }

    def _stateful(self) -> list[Stage | KeyBy]:
        return [stage for stage in self.stages if stage.fingerprint() is not None]

    def _schemas(self, faults: list[str]) -> list[pa.Schema]:
        if not self.sources:
            faults.append("read: there is no source; call read()")
            return []
        schema = self._source_schema(faults)
        schemas = [schema] if schema is not None else []
        for stage in self.stages if schemas else ():
            try:
                schemas.append(stage.output_schema(schemas[-1]))
            except PipelineError as error:
                faults += error.faults
                # A stage that only names columns wrongly leaves the schema as it is: go on and find the next fault.
                if not isinstance(stage, Dedup | KeyBy | Filter):
                    break
                schemas.append(schemas[-1])
        return schemas

    def _source_schema(self, faults: list[str]) -> pa.Schema | None:
        first: pa.Schema | None = None
        for source in self.sources:
            try:
                schema = source.schema()
            except EngineError as error:
                faults.append(f"read: {error}")
                continue
            if first is None:
                first = schema
            elif difference := _schema_difference(first, schema):
                faults.append(f"read: {source.name} does not fit {self.sources[0].name}: {difference}")
            else:
                first = _nullable_in_either(first, schema)
        return first

    def _dedup_behind_key_by(self) -> list[str]:
        faults: list[str] = []
        partition_keys: set[str] = set()
        for stage in self.stages:
            if isinstance(stage, KeyBy):
                partition_keys = set(stage.keys)
            elif isinstance(stage, Dedup) and not partition_keys <= set(stage.keys):
                faults.append(
                    f"dedup: behind key_by its keys must include {', '.join(sorted(partition_keys))}, found "
                    f"{', '.join(stage.keys)}; move it before key_by"
                )
        return faults

    def _output(self, schema: pa.Schema | None) -> list[str]:
        faults: list[str] = []
        if isinstance(self.sink, OutputFiles):
            location = self.sink.location
            faults += [
                f"write: {source.name} would read the output {location} again; write outside of what is read"
                for source in self.sources
                if location and source.covers(location)
            ]
        if isinstance(self.sink, ChecksSchema) and schema is not None:
            faults += [f"write: {fault}" for fault in self.sink.faults(schema)]
        return faults

    def _durability(self, durable: bool | None) -> list[str]:
        faults: list[str] = []
        if durable is False and self.sink is not None and self.sink.guarantee is Guarantee.EXACTLY_ONCE:
            faults.append(f"write: {self.sink.name} needs state=…, to be exactly-once")
        nameless = any(getattr(source, "id", "") is None for source in self.sources)
        if durable and nameless:
            faults.append(
                "read: an in-memory source needs id=… with state=, so that other data never resumes at its offset"
            )
        return faults


def _repeated(names: list[str]) -> list[str]:
    return sorted({name for name in names if names.count(name) > 1})


def _schema_difference(expected: pa.Schema, found: pa.Schema) -> str | None:
    for field in expected:
        if field.name not in found.names:
            return f'it has no column "{field.name}"'
        if found.field(field.name).type != field.type:
            return f'"{field.name}" is {found.field(field.name).type} there, and {field.type} here'
    extra = [name for name in found.names if name not in expected.names]
    return f'it has another column "{extra[0]}"' if extra else None


def _nullable_in_either(schema: pa.Schema, other: pa.Schema) -> pa.Schema:
    """``schema``, where a column may be null if it may be in one of the two."""
    fields = [field.with_nullable(field.nullable or other.field(field.name).nullable) for field in schema]
    return pa.schema(fields, metadata=schema.metadata)  # type: ignore[arg-type]

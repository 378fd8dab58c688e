"""What ``Pipeline.explain`` shows: the graph, a line or a node for each step, with its guarantee and what it keeps."""

from collections.abc import Iterator, Sequence
from typing import Literal

from engine.errors import PipelineError
from engine.graph import Graph
from engine.sink import Guarantee
from engine.source import Replay
from engine.stage import Stage
from engine.stages.dedup import Dedup
from engine.stages.hash_partitioner import KeyBy
from engine.stages.map import Map

__all__ = ["Format", "explain"]

Format = Literal["text", "mermaid"]

_REPLAY = {
    Replay.REPLAYABLE: "replayable: resumes at the committed row",
    Replay.REPEATABLE: "repeatable: skips the committed rows after comparing their checksum",
    Replay.ONCE: "once: cannot be read again after a crash",
}
_GUARANTEE = {
    Guarantee.EXACTLY_ONCE: "exactly-once: staged, then published by the commit",
    Guarantee.AT_LEAST_ONCE: "at-least-once: rows since the last commit come again after a crash",
}


def explain(name: str, graph: Graph, *, format: Format = "text") -> str:
    """The graph as text or as a mermaid chart. Raises PipelineError for another format."""
    steps = [(f"read {source.name}", _REPLAY[source.replay]) for source in graph.sources]
    steps += list(_describe(graph.stages))
    if graph.sink is None:
        steps.append(("collect", "in memory"))
    else:
        steps.append((f"write {graph.sink.name}", _GUARANTEE[graph.sink.guarantee]))
    if format == "text":
        width = max(len(step) for step, _ in steps)
        return "\n".join([name, *(f"  {step:<{width}}  {note}" for step, note in steps)])
    if format != "mermaid":
        raise PipelineError(f'explain: format must be "text" or "mermaid", found {format!r}')
    nodes = [
        f'  n{index}["{_escape(step)}<br/><small>{_escape(note)}</small>"]' for index, (step, note) in enumerate(steps)
    ]
    first_stage = len(graph.sources)
    edges = [f"  n{index} --> n{first_stage}" for index in range(first_stage)]
    edges += [f"  n{index} --> n{index + 1}" for index in range(first_stage, len(steps) - 1)]
    return "\n".join(["flowchart LR", *nodes, *edges])


def _describe(stages: Sequence[Stage | KeyBy]) -> Iterator[tuple[str, str]]:
    partitions = 1
    for stage in stages:
        if isinstance(stage, KeyBy):
            partitions = stage.partitions
            yield stage.name, f"{partitions} partitions, order kept per key"
        elif isinstance(stage, Dedup):
            exact = "exact" if stage.exact == "fingerprint" else "exact by bytes"
            yield stage.name, f"{exact}, {_window(stage)}; state: keys seen, committed with the rows"
        elif isinstance(stage, Map):
            yield stage.name, f"in order, {partitions * stage.concurrency} at once at most; no state"
        else:
            yield stage.name, "no state"


def _window(stage: Dedup) -> str:
    if stage.within is None:
        return "for ever"
    return f"within {stage.within:,} rows" if isinstance(stage.within, int) else f"within {stage.within} of {stage.by}"


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")

"""The commands and their options. Their docstrings are the help that people read."""

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter, validators

from engine.byte_size import parse_bytes
from engine.cli.execution import run_and_report
from engine.cli.reference import load_pipeline

__all__ = ["app"]

app = App(
    name="engine",
    help="Bulk ingest and event processing, exactly once, in one process.",
    version=lambda: _version(),
    help_format="plaintext",
    suppress_keyboard_interrupt=False,
)


app.command("engine.cli.log:app", name="log", help="Look at a durable log, and read it.")


def _check_benchmark(kind: type, name: str | tuple[str, ...]) -> None:
    from engine.cli.bench.session import benchmark_names

    known = benchmark_names()
    for one in (name,) if isinstance(name, str) else name:
        if one not in known:
            raise ValueError(f'There is no benchmark "{one}"; there are {", ".join(known)}.')


Reference = Annotated[str, Parameter(help="A pipeline, or a function that returns one, as module:name.")]
Memory = Annotated[str, Parameter(help="The byte budget.")]
Benchmark = Annotated[
    str, Parameter(help="Which of them, such as ingest or dedup; all without a name.", validator=_check_benchmark)
]
CommitEveryS = Annotated[float, Parameter(help="Commit after so many seconds …")]
CommitEveryBytes = Annotated[str | None, Parameter(help="… or so many bytes of input, such as 64MiB.")]


@app.command
def run(
    reference: Reference,
    /,
    *,
    state: Annotated[Path | None, Parameter(help="Where progress is kept; the next run resumes there.")] = None,
    memory: Memory = "512MiB",
    commit_every_s: CommitEveryS = 5.0,
    commit_every_bytes: CommitEveryBytes = None,
) -> None:
    """Run a pipeline to the end of its sources and print the report.

    Ctrl-C and SIGTERM finish and commit what was read. Run it again after that, or after a crash: it resumes.
    """
    commit_bytes = None if commit_every_bytes is None else parse_bytes(commit_every_bytes, name="commit_every_bytes")
    run_and_report(
        lambda: load_pipeline(reference),
        state=state,
        memory=memory,
        commit_every_s=commit_every_s,
        commit_every_bytes=commit_bytes,
    )


@app.command
def demo(
    *,
    directory: Annotated[Path, Parameter(help="Where its input, output and state go.")] = Path("engine-demo"),
    memory: Memory = "512MiB",
    commit_every_s: CommitEveryS = 5.0,
) -> None:
    """Ingest a bundled sample of real events, exactly once: Parquet files in, deduplicated Parquet files out."""
    from engine.cli.demo import demo_pipeline, prepare_input

    _say(prepare_input(directory))
    _say('  read, dedup("event_id"), key_by("key", partitions=8), map(add_delay), write Parquet:')
    run_and_report(
        lambda: demo_pipeline(directory), state=directory / "state", memory=memory, commit_every_s=commit_every_s
    )
    _say("Run it again: it resumes and finds nothing left to do.")
    _say(
        f"Or remove {directory}, run it, kill -9 it at any moment, and run it again: the same rows, each exactly once."
    )


@app.command
def validate(reference: Reference, /) -> None:
    """Check a pipeline and tell every fault; reads footers and headers, not rows."""
    pipeline = load_pipeline(reference)
    pipeline.validate()
    print(f"{pipeline.name}: no faults")


@app.command
def explain(
    reference: Reference,
    /,
    *,
    format: Annotated[Literal["text", "mermaid"], Parameter(help="Text, or a mermaid chart.")] = "text",
) -> None:
    """Show the graph of a pipeline, with the guarantee and the state of each stage."""
    print(load_pipeline(reference).explain(format=format))


checkpoint = App(name="checkpoint", help="Look at the state of pipelines, also beside a run, and repair it.")
app.command(checkpoint)

State = Annotated[Path, Parameter(help="What was passed as state=, or the directory of one pipeline in it.")]


@checkpoint.command
def ls(state: State, /) -> None:
    """List the pipelines of a state directory: epoch, whether it is FINAL, term, rows, sizes, and who owns it."""
    from engine.cli.checkpoint import list_states

    list_states(str(state))


@checkpoint.command
def show(
    state: State, /, *, format: Annotated[Literal["text", "json"], Parameter(help="Text, or JSON.")] = "text"
) -> None:
    """Show the last commit of a pipeline: offsets, states, handles, counters and the fingerprint of its graph."""
    from engine.cli.checkpoint import show_state

    show_state(str(state), as_json=format == "json")


@checkpoint.command
def verify(state: State, /) -> None:
    """Read the manifest and every file that the last commit names, and tell which are damaged, and where.

    Ends with exit code 1 where one is. Nothing is repaired. What the sink has published or staged is not looked at: the
    commit does not tell where that lies. The next run compares what it publishes again.
    """
    from engine.cli.checkpoint import verify_states

    verify_states(str(state))


@checkpoint.command
def repair(
    reference: Reference,
    /,
    *,
    state: Annotated[Path, Parameter(help="What was passed as state= when it ran.")],
    memory: Memory = "512MiB",
) -> None:
    """Rebuild damaged files of stages: read the sources again, up to what the last commit holds, and emit nothing.

    The damaged files stay where they are, and may be removed by hand once a run has gone on; what was sound beside them
    goes with the first commit of that run. A damaged manifest cannot be repaired: only it tells up to where the sources
    were committed. Ctrl-C and SIGTERM leave the state as it was.
    """
    from engine.cli.repair import repair_state

    repair_state(lambda: load_pipeline(reference), str(state), memory=memory)


@app.command
def bench(
    *names: Benchmark,
    size: Annotated[
        Literal["small", "large", "huge"],
        Parameter(help="200,000 rows, 10 million (minutes, about 8 GB), or up to 200 million."),
    ] = "large",
    json: Annotated[Path | None, Parameter(help="Write what was measured, as pytest-benchmark does.")] = None,
    plot: Annotated[Path | None, Parameter(help="Draw ours beside the peers, as SVG.")] = None,
) -> None:
    """Measure engine beside its peers on this machine, check that all answer alike, and print one table.

    Needs the extra "bench"; a peer that is not installed is named as absent.
    """
    from engine.cli.bench.session import run_benchmarks

    run_benchmarks(names, size=size, json_file=json, plot_file=plot)


@app.command
def simulate(
    reference: Reference,
    /,
    *,
    seeds: Annotated[
        int, Parameter(help="How many; each is a history of faults of its own.", validator=validators.Number(gte=1))
    ] = 100,
    first: Annotated[int, Parameter(help="The first seed.", validator=validators.Number(gte=0))] = 0,
) -> None:
    """Run a pipeline on a simulated machine whose power fails and whose disk refuses, and print the seeds that fail.

    Whatever happens, its rows must be those of a run to which nothing happened: none lost, none twice, in order by key.
    """
    from engine.cli.simulate import run_simulation

    run_simulation(reference, first=first, seeds=seeds)


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _version() -> str:
    from importlib.metadata import version

    return f"engine {version('ingest-engine')}"

"""Clocks, chance, ids and threads go through one seam each, so that a whole run can be simulated."""

import ast
import re

from source_tree import engine_modules, shown, tree_of

SEAM = "engine.nature"

CALLS = re.compile(
    r"time\.(time|time_ns|monotonic|monotonic_ns|sleep)|datetime\.(now|utcnow|today)|date\.today|os\.(urandom|getrandom)"
    r"|(random|secrets|uuid)\.\w+|threading\.(Thread|Timer)|(\w+\.)?(ThreadPoolExecutor|ProcessPoolExecutor)"
    r"|trio\.to_thread\.run_sync|np\.random\.\w+"
)

EXCEPTIONS = {
    ("engine._runtime.worker", "threading.Thread"): "the worker threads; a simulation gives its own Workers",
    ("engine.background", "threading.Thread"): "background work; a simulation gives its own Background",
    ("engine.stages.map", "ThreadPoolExecutor"): "learns the schema of an async function, before a run",
    ("engine.stages.map", "trio.to_thread.run_sync"): "a function with timeout_s= is left behind with its thread",
    ("engine.log.log", "trio.to_thread.run_sync"): "the async calls of a log beside a pipeline",
    ("engine.sinks.duckdb_table", "time.sleep"): "waits for another process that has the database open",
    ("engine.storage", "time.sleep"): "waits for another process; a simulated storage does not",
    ("engine.retry", "random.uniform"): "a generator that its caller seeded",
    ("engine.testing.workload", "np.random.PCG64"): "seeded by its caller",
    ("engine.testing.split_mix", "np.random.SeedSequence"): "seeded by its caller",
    ("engine.testing.workload", "np.random.Generator"): "seeded by its caller",
}
"""What else there is, and why it decides nothing in a run. An entry that is not needed any more has to go."""


def uses(tree: ast.Module) -> list[tuple[int, str]]:
    """Line and name of every use that is not through the seam; the longest name only."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name) and CALLS.fullmatch(name := ast.unparse(node)):
            found.setdefault((node.lineno, name), None)
    return list(found)


def test_nothing_goes_past_the_seam() -> None:
    lines = [
        f"{shown(path)}:{line}: {name}; clocks, chance and ids come from {SEAM}, threads from the runtime"
        for module, path in engine_modules().items()
        if module != SEAM
        for line, name in uses(tree_of(path))
        if (module, name) not in EXCEPTIONS
    ]
    assert not lines, "\n".join(lines)


def test_every_exception_is_needed() -> None:
    modules = engine_modules()
    idle = [
        f"{module}: {name}"
        for module, name in EXCEPTIONS
        if module not in modules or name not in {used for _, used in uses(tree_of(modules[module]))}
    ]
    assert not idle, "\n".join(idle)


def test_it_would_be_found() -> None:
    text = "import time, random\ntime.sleep(1)\nx = random.random()\nthreading.Thread(target=f)\ndatetime.now(UTC)\n"
    assert [line for line, _ in uses(ast.parse(text))] == [2, 3, 4, 5]

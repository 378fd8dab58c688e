"""Tools for testing pipelines, and sources and sinks of your own.

``check_sink`` and ``check_source`` prove that an implementation keeps the laws of ``engine.sink`` and
``engine.source``. `engine.testing.workload` makes the streams that engine's own tests, benchmarks and demo are made
with. Nothing else in the package imports this room but the command line.
"""

from engine.testing.sink_contract import check_sink
from engine.testing.source_contract import check_source

__all__ = ["check_sink", "check_source"]

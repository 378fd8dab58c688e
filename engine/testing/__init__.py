"""Tools for testing pipelines, and sources and sinks of your own.

``check_sink`` and ``check_source`` prove that an implementation keeps the laws of ``engine.sink`` and
``engine.source``. An ``EventStream`` describes a stream of events, with all that goes wrong in one, and knows the truth
about each of its rows. `engine.testing.workload` makes the streams that engine's own benchmarks and demo are made with.
Nothing else in the package imports this room but the command line.
"""

from engine.testing.event_stream import Bursts, EventStream, Truth
from engine.testing.schema_drift import Drift
from engine.testing.sink_contract import check_sink
from engine.testing.source_contract import check_source

__all__ = ["Bursts", "Drift", "EventStream", "Truth", "check_sink", "check_source"]

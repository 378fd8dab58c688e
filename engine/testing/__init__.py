"""Tools for testing pipelines: those that engine's own tests, benchmarks and demo are made with.

Each tool is a module (`engine.testing.workload`). Nothing else in the package imports this room but the command line.
"""

"""``engine bench``: runs the benchmarks, and shows how ours stands beside its peers, as a table and as a picture.

Read ``standing`` first (what was measured), then ``table`` and ``plot`` (how it is shown), then ``session`` (how it is
run).
"""

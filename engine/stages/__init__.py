"""What happens to rows between source and sink: one stage a module.

    dedup, key_window, id_runs, sealed_run, id_log   exact deduplication: the stage, its window, and the window's files
    deduplicator                                     the same window, for use without a pipeline

Nothing is re-exported: each module stands alone.
"""

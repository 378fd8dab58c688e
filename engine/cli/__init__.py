"""The command line: ``engine run``, ``demo``, ``validate``, ``explain`` and ``bench``.

Exit codes: 0 done; 1 an error of the pipeline, its input, its sink or its state, told on stderr without a traceback;
2 the command line itself is wrong; 130 after Ctrl-C and 143 after SIGTERM, both when what was read is committed.

Laws: reports go to stdout, all else to stderr; nothing heavy is imported before a command is known to need it.
"""

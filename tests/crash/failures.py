"""How a call of the storage fails in a sweep over all calls.

With ``--call-stride 4`` each kind has a turn of its own among the calls: together they fail every call once.
"""

import errno

import pytest

FAILURES = [
    pytest.param(turn, number, times, id=f"{errno.errorcode[number]} {name}")
    for turn, (number, times, name) in enumerate(
        [
            (errno.EIO, 1, "once"),
            (errno.EIO, None, "for ever"),
            (errno.ENOSPC, 1, "once"),
            (errno.ENOSPC, None, "for ever"),
        ]
    )
]
"""Turn, number of the error, and how often it comes (None: from then on)."""

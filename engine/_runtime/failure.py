"""Which error of a group is the one that people need to see."""

import trio

__all__ = ["root_cause"]


def root_cause(error: BaseException) -> BaseException:
    """The first error in a group that is no cancellation; a cancellation where there is nothing else."""
    while isinstance(error, BaseExceptionGroup):
        _, errors = error.split(trio.Cancelled)
        error = (errors or error).exceptions[0]
    return error

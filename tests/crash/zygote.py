"""A process that has everything imported and forks a child for each job, so that a thousand kills take minutes.

It reads one JSON object a line from its standard input (the fields of a job), forks, answers with the child's pid,
says so whenever the child has been stopped, and, when it has ended, answers with its exit status. It never starts a
thread itself, so that forking is safe.
"""

import json
import os
import sys
import traceback

import jobs

from engine.errors import EngineError


def status_of(error: BaseException) -> int:
    if isinstance(error, EngineError):
        return jobs.REFUSED
    return jobs.OUT_OF_MEMORY if isinstance(error, MemoryError) else 70


def serve() -> None:
    for line in sys.stdin:
        job = jobs.Job(**json.loads(line))
        pid = os.fork()
        if pid == 0:
            status = 70
            try:
                jobs.run(job)
                status = 0
            except BaseException as error:
                status = status_of(error)
                jobs.lift(job.limits)
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        print(pid, flush=True)
        _, status = os.waitpid(pid, os.WUNTRACED)
        while os.WIFSTOPPED(status):
            print("stopped", flush=True)
            _, status = os.waitpid(pid, os.WUNTRACED)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    serve()

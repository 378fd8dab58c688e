"""A process that has everything imported and forks a child for each job, so that a thousand kills take minutes.

    python zygote.py <the file of a module that has Job, run and failed>

It reads one JSON object a line from its standard input (the fields of a job), forks, answers with the child's pid,
says so whenever the child has been stopped, and, when it has ended, answers with its exit status: that of ``failed``
where the job raised. It never starts a thread itself, so that forking is safe; nor may the module, which imports
libraries and uses none of them before it runs a job.
"""

import importlib
import json
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType


def serve(jobs: ModuleType) -> None:
    for line in sys.stdin:
        job = jobs.Job(**json.loads(line))
        pid = os.fork()
        if pid == 0:
            status = 70
            try:
                jobs.run(job)
                status = 0
            except BaseException as error:
                status = jobs.failed(job, error)
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
    file = Path(sys.argv[1])
    sys.path.insert(0, str(file.parent))
    serve(importlib.import_module(file.stem))

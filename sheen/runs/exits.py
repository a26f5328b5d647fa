"""How a job ends: an exit status, and one line that says why.

Owns how errors that the user can fix are shown: bad input, a full or read-only disk, Ctrl-C. Every
other exception is a bug and keeps its traceback.
"""

import logging
import signal
from collections.abc import Callable

from ray.exceptions import RayTaskError

from sheen.config import fail
from sheen.storage import files


class Stopped(Exception):
    """A job ended early because it was asked to, and can be resumed."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.status = 128 + signum
        """Exit status, as shells have it for a process that ended by a signal."""


def run_job(prog: str, job: Callable[[], int]) -> int:
    """What `job` returns; 2: the user must change something; 128 + signal: stopped, resumable.

    Also sets the log up as every job has it.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        return job()
    except (ValueError, OSError) as error:
        if isinstance(error, RayTaskError):  # it is what the task raised too
            raise
        if isinstance(error, OSError) and error.errno in files.DISK_FULL:
            return fail(prog, OSError(f"{error}. Free space, then the same command resumes"))
        return fail(prog, error)
    except KeyboardInterrupt:
        print(f"{prog}: interrupted; the same command resumes", flush=True)
        return 128 + signal.SIGINT
    except Stopped as stopped:
        print(f"{prog}: {stopped}", flush=True)
        return stopped.status

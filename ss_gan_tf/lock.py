"""One process at a time in a run's folder."""

import contextlib
import fcntl
import logging
import os
import socket
from collections.abc import Iterator

FILE = "lock"  # in RUN; stays there, and means nothing while nobody holds it

_LOG = logging.getLogger(__name__)


@contextlib.contextmanager
def alone_in(workdir: str) -> Iterator[None]:
    """Keeps other processes that ask for it out of a folder.

    The operating system lets go of the lock when the process ends, however it ends.

    Args:
        workdir: RUN; made if it is missing.

    Raises:
        ValueError: another process is at work there, or workdir is a file; the
            message names the process.
    """
    try:
        os.makedirs(workdir, exist_ok=True)
    except FileExistsError as error:
        raise ValueError(f"workdir={workdir}: is a file") from error
    with open(os.path.join(workdir, FILE), "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read(200).strip() or "a process that has just begun"
            raise ValueError(
                f"workdir={workdir}: another run is at work there ({holder}); wait for "
                "its end, or choose another --workdir"
            ) from error
        except OSError as error:  # some network file systems know no locks
            _LOG.warning("%s: cannot be locked (%s)", workdir, error)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield

"""Programs as processes of their own, alone and as the workers of a cluster."""

import json
import os
import socket
import subprocess
import sys


def start(module, *arguments, **variables):
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def cluster(num_workers):
    """TF_CONFIG of each worker, on free ports of this machine."""
    sockets = [socket.socket() for _ in range(num_workers)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    hosts = [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]
    for one in sockets:
        one.close()
    return [
        json.dumps(
            {
                "cluster": {"worker": hosts},
                "task": {"type": "worker", "index": number},
            }
        )
        for number in range(num_workers)
    ]


def finish(*processes):
    """Each has to end by itself, with exit code 0."""
    outputs = _outputs(processes)
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output[-3000:]


def fail(*processes):
    """What they say; each has to end by itself, with exit code 1."""
    outputs = _outputs(processes)
    codes = [process.returncode for process in processes]
    assert codes == [1] * len(processes), [output[-3000:] for output in outputs]
    return outputs


def _outputs(processes):
    try:
        return [process.communicate(timeout=1200)[0] for process in processes]
    finally:  # none is left behind where one does not end
        for process in processes:
            process.kill()
            process.wait()

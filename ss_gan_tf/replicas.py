"""Several devices and machines: one batch shared out, one update of the whole batch.

`tf.distribute` keeps a copy of every variable on each replica (a device). A step runs
on all of them, each with its part of the batch, and exchanges what belongs to the whole
batch: gradients, losses, squared norms, verdicts. On one device all of this is the
identity. A worker is a process; the chief is the worker that writes.
"""

import contextlib
import functools
import hashlib
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator

import keras
import tensorflow as tf

from ss_gan_tf import lock
from ss_gan_tf.messages import first_line

_LOG = logging.getLogger(__name__)

_OF_LOST_WORKERS = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
)

# --- Setting up --------------------------------------------------------------


def make_strategy(distribute: str) -> tf.distribute.Strategy:
    """The strategy of a run; a program makes it before it calculates anything.

    Args:
        distribute: `none`, `mirrored` (all GPUs of this machine, without one its
            CPUs) or `multi_worker` (the same on each machine of TF_CONFIG).

    Returns:
        TensorFlow's strategy, for `with strategy.scope()`.

    Raises:
        ValueError: TF_CONFIG is missing or describes no cluster of workers, or its
            address for this one is taken.
    """
    if distribute == "none":
        return tf.distribute.get_strategy()
    if distribute == "mirrored":
        kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
        devices = [device.name for device in tf.config.list_logical_devices(kind)]
        if len(devices) == 1:
            _LOG.warning(
                "distribute=mirrored: TensorFlow has one device of the kind %s here: "
                "there is nothing to share",
                kind,
            )
        return tf.distribute.MirroredStrategy(devices)
    hosts, number = _read_cluster(os.environ.get("TF_CONFIG", ""))
    others = [host for host in hosts if host != hosts[number]]
    if others:
        how = "; Ctrl-C ends it" if _takes_ctrl_c() else ""
        _LOG.info("worker %s is waiting for %s%s", number, ", ".join(others), how)
    try:
        with _interruptible():
            strategy = tf.distribute.MultiWorkerMirroredStrategy()
    except tf.errors.OpError as error:
        raise ValueError(
            f"TF_CONFIG: worker {number} cannot begin at {hosts[number]}: "
            f"{first_line(error)}; the port must be free and the others reachable"
        ) from error
    return strategy


def _takes_ctrl_c():
    """Whether it may end the process: not where a person has more in it than a run.

    It is Python's in the main thread alone, and ignored behind &, which stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        return False
    is_ours = signal.getsignal(signal.SIGINT) not in (None, signal.SIG_IGN)
    return is_ours and not hasattr(sys, "ps1")  # a notebook's, or a prompt's


@contextlib.contextmanager
def _interruptible():
    """Ctrl-C ends the process in here, where a program has nothing to lose yet.

    TensorFlow waits for other workers without coming back to Python, whose handlers
    would have to wait as well. It takes SIGTERM for itself meanwhile, so that of the
    program is put back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGTERM, signal.SIGINT)
    handlers = {number: signal.getsignal(number) for number in numbers}
    if _takes_ctrl_c():
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None:
                signal.signal(number, handler)


def _read_cluster(text):
    """(addresses, own number) of a TF_CONFIG.

    Raises:
        ValueError: it is one that TensorFlow would wait for or misread.
    """
    rule = (
        'distribute=multi_worker: TF_CONFIG must be {"cluster": {"worker": '
        '["HOST:PORT", ...]}, "task": {"type": "worker", "index": N}}'
    )
    try:
        fields = json.loads(text)
        hosts, task = fields["cluster"]["worker"], fields["task"]
        number = task["index"]
        known = task["type"] == "worker" and number in range(len(hosts))
        known &= type(number) is int and all(map(_is_address, hosts))
        alone = set(fields["cluster"]) == {"worker"} and type(hosts) is list
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{rule}; it is {text!r}") from error
    if not known or not alone:
        raise ValueError(f"{rule}, N below the number of hosts; it is {text!r}")
    return hosts, number


def _is_address(host):
    """Whether it is HOST:PORT, with a port that can be."""
    if type(host) is not str:
        return False
    name, _, port = host.rpartition(":")
    if not name.strip() or "/" in name or (":" in name and name[0] != "["):
        return False
    return port.isascii() and port.isdecimal() and 0 < int(port) < 2**16


def worker(strategy: tf.distribute.Strategy) -> tuple[int, int]:
    """(this process's number, how many there are); number 0 is the chief."""
    resolver = strategy.cluster_resolver
    if resolver is None or not resolver.cluster_spec():
        return 0, 1
    return resolver.task_id, resolver.cluster_spec().num_tasks("worker")


def devices(strategy: tf.distribute.Strategy) -> list[Callable]:
    """For each device of this process, what gives a context that computes there.

    In it a variable is read from the device's own copy. Threads may use several at
    once.
    """
    if strategy.num_replicas_in_sync == 1:
        return [contextlib.nullcontext]

    @contextlib.contextmanager
    def on(name):
        with strategy.scope(), tf.device(name):
            yield

    names = strategy.extended.worker_devices
    return [functools.partial(on, name) for name in names]


def check_batch(batch_size: int, accumulate_steps: int, num_replicas: int):
    """Refuses a batch that does not make equal parts for all replicas.

    Raises:
        ValueError: batch_size is no multiple of their product.
    """
    if batch_size % (accumulate_steps * num_replicas):
        raise ValueError(
            f"batch_size={batch_size}: must be a multiple of {num_replicas} devices "
            f"x accumulate_steps={accumulate_steps}; it counts the images of all "
            "devices together"
        )


# --- Around a step -----------------------------------------------------------


def make_function(
    step: Callable, generator: keras.Model, jit_compile: bool
) -> Callable:
    """The step as a `tf.function`, on every replica of the strategy in scope.

    Args:
        step: (image, label) -> scalars, which are the same on each replica.
        generator: its seeds of dropout are made different between replicas.
        jit_compile: compile with XLA; one replica only.

    Returns:
        (image, label) of this worker's share of the batch -> scalars.
    """
    if count() == 1:
        return tf.function(step, jit_compile=jit_compile)
    strategy = tf.distribute.get_strategy()
    _, num_workers = worker(strategy)
    num_local = count() // num_workers

    def on_replica(image, label):
        number = tf.distribute.get_replica_context().replica_id_in_sync_group
        _separate_dropout(generator, number)
        scalars = step(
            *(
                _share(tensor, number % num_local, num_local)
                for tensor in (image, label)
            )
        )
        _average_statistics(generator)
        return scalars

    @tf.function
    def on_all_replicas(image, label):
        scalars = strategy.run(on_replica, (image, label))
        return {
            name: strategy.experimental_local_results(value)[0]
            for name, value in scalars.items()
        }

    return on_all_replicas


def _share(tensor, number, num_shares):
    """The `number`-th of equal shares of [B, ...]."""
    size = tensor.shape[0] // num_shares
    return tf.reshape(tensor, [num_shares, size, *tensor.shape[1:]])[number]


def _separate_dropout(generator, number):
    """Each replica draws masks of its own; its images are others."""
    for variable in generator.non_trainable_variables:
        if variable.path.endswith("seed_generator_state"):
            # A prime: the seeds of a network's layers are neighbours.
            offset = tf.stack([7919 * tf.cast(number, tf.int64), 0])
            state = tf.cast(variable, tf.int64) + offset
            variable.assign(tf.cast(state, variable.dtype))


def _average_statistics(generator):
    """Batch normalisation that trains has seen other images on each replica."""
    for layer in generator._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable:
            for variable in layer.non_trainable_weights:
                variable.assign(total(tf.identity(variable)) / count())


# --- Inside a step -----------------------------------------------------------


def count() -> int:
    """Replicas of the strategy in scope."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def total(tensor: tf.Tensor) -> tf.Tensor:
    """Sum over the replicas."""
    if count() == 1:
        return tensor
    context = tf.distribute.get_replica_context()
    return context.all_reduce(tf.distribute.ReduceOp.SUM, tensor)


def joined(tensor: tf.Tensor) -> tf.Tensor:
    """[b, ...] of each replica -> [B, ...] of the whole batch."""
    if count() == 1:
        return tensor
    whole = tf.distribute.get_replica_context().all_gather(
        tf.cast(tensor, tf.float32), axis=0
    )
    return tf.cast(whole, tensor.dtype)


# --- Around a run ------------------------------------------------------------


@contextlib.contextmanager
def own_folder(strategy: tf.distribute.Strategy, workdir: str) -> Iterator[str]:
    """Where this worker writes: the chief in the run's folder, the others elsewhere.

    Each of the others starts with a copy of what the run's folder holds, so all of
    them continue from the same state, and none is there when the chief writes. The
    copy lies in the machine's temporary folder and replaces that of an earlier start;
    it is removed at the end, when the slowest worker is done, or one cannot go on.

    Args:
        strategy: of the run; with several workers all of them have to call this.
        workdir: the run's folder, which every worker can read.

    Yields:
        The folder, in which no other process is at work.

    Raises:
        ValueError: another process is at work there, or a link stands where the copy
            should lie; nothing was touched.
    """
    number, num_workers = worker(strategy)
    folder = _copy_of(workdir, number) if number else workdir
    if number and os.path.islink(folder):
        raise ValueError(f"{folder}: is a link, not this worker's folder; remove it")
    with lock.alone_in(folder):
        try:
            if number:
                _copy(workdir, folder)
            if num_workers > 1:
                wait_for_all(strategy)
            yield folder
            if num_workers > 1:
                wait_for_all(strategy)
        finally:
            if number:
                shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def naming_lost_workers(
    strategy: tf.distribute.Strategy,
    outcome: str = "they go on from the last saved state",
) -> Iterator[None]:
    """Says so where TensorFlow's error comes from another worker that is gone.

    Args:
        strategy: of the work.
        outcome: what comes of starting all workers again; the end of the message.

    Raises:
        ConnectionError: in its place; nothing that was saved is lost.
    """
    try:
        yield
    except _OF_LOST_WORKERS as error:
        if worker(strategy)[1] == 1:
            raise
        raise ConnectionError(
            f"another worker is gone or out of reach: {first_line(error)}; start all "
            f"of them again with the same command: {outcome}"
        ) from error


def _copy_of(workdir, number):
    """The folder of a worker that is not the chief."""
    key = hashlib.sha256(os.path.abspath(workdir).encode()).hexdigest()[:16]
    return os.path.join(tempfile.gettempdir(), f"ss_gan_tf-{key}-worker{number}")


def _copy(workdir, folder):
    """Makes a folder hold what another one does; its lock stays, and is held."""
    for name in set(os.listdir(folder)) - {lock.FILE}:
        path = os.path.join(folder, name)
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.remove(path)
    if os.path.isdir(workdir):
        ignored = shutil.ignore_patterns(lock.FILE)
        shutil.copytree(workdir, folder, dirs_exist_ok=True, ignore=ignored)


def wait_for_all(strategy: tf.distribute.Strategy):
    """Returns when every worker has called it."""

    def on_replica():
        context = tf.distribute.get_replica_context()
        return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.constant(1.0))

    values = tf.function(lambda: strategy.run(on_replica))()
    for value in strategy.experimental_local_results(values):
        value.numpy()

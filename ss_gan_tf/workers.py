"""What the workers of a run tell each other: shared results, and whether to stop.

Every worker has to make the same calls in the same order: each call waits until all
have made it.  A worker that cannot go on says so in the call, so nobody waits for it.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ss_gan_tf import per_image, replicas
from ss_gan_tf.messages import first_line
from ss_gan_tf.per_image import PerImage

MAX_MESSAGE = 2**24  # bytes; a length below it is exact as a float32

_COUNTS, _END, _TROUBLE = b"c", b"e", b"t"


def digest(variables: Iterable[keras.Variable]) -> str:
    """Says whether all values are the same to the last bit, as hexadecimal SHA-256."""
    values = hashlib.sha256()
    for variable in variables:
        values.update(np.asarray(variable).tobytes())
    return values.hexdigest()


class Workers:
    """All workers, seen from one of them; alone it has nobody to ask.

    Args:
        strategy: of the run.

    Attributes:
        number: of this worker, from 0.
        count: how many there are.
    """

    def __init__(self, strategy: tf.distribute.Strategy):
        self.number, self.count = replicas.worker(strategy)
        self._strategy = strategy

    def any(self, flag: bool) -> bool:
        """Whether one of the workers says so; all get the same answer."""
        if self.count == 1:
            return flag
        return float(self._sum(tf.constant(float(flag)))) > 0

    def join(self, parts: Iterator[PerImage]) -> Iterator[PerImage]:
        """Every worker's counts, on every worker.

        Args:
            parts: of this worker's images; workers may have different numbers of them.

        Yields:
            The first parts of all workers as one, then the second ones, ...; the same
            on every worker.

        Raises:
            ValueError: another worker cannot go on; names it and its error. The worker
                itself raises its own error, at the same moment.
        """
        if self.count == 1:
            yield from parts
            return
        while True:
            error = None
            try:
                part = next(parts, None)
                message = _END if part is None else _COUNTS + per_image.to_bytes(part)
                _check_size(message)
            except Exception as own:  # the others have to hear of it, whatever it is
                error, message = own, _TROUBLE + first_line(own).encode()
            answers = self._exchange(message, error)
            found = [
                per_image.from_bytes(answer[1:])
                for answer in answers
                if answer.startswith(_COUNTS)
            ]
            if not found:
                return
            yield per_image.join(found)

    def agree(self, prepare: Callable[[], tuple[Any, dict[str, Any]]]) -> Any:
        """What `prepare` returns, once all workers have got through it alike.

        Args:
            prepare: () -> (anything, facts that have to be the same on every worker,
                JSON-ready; None where one is not known). It must not wait for others,
                nor create variables of the strategy: when it fails, they wait here.

        Raises:
            ValueError: another worker cannot go on, or has another fact; names the
                first such worker, on every worker. One that cannot go on raises its own
                error, at the same moment.
        """
        if self.count == 1:
            return prepare()[0]
        error = result = None
        try:
            result, facts = prepare()
            message = _COUNTS + json.dumps(facts).encode()
        except Exception as own:  # the others have to hear of it, whatever it is
            error, message = own, _TROUBLE + first_line(own).encode()
        first, *others = (
            json.loads(answer[1:]) for answer in self._exchange(message, error)
        )
        for number, facts in enumerate(others, start=1):
            for name, value in first.items():
                other = facts.get(name)
                if None not in (value, other) and value != other:
                    raise ValueError(
                        f"{name}={other}: on worker {number}, worker 0 has {value}; "
                        "all workers of a run need the same flags, data and files"
                    )
        return result

    def _exchange(self, message, error):
        """`exchange`, then the own error is raised, or that of another worker."""
        try:
            answers = self.exchange(message)
        finally:
            if error:
                raise error
        for number, answer in enumerate(answers):
            if answer.startswith(_TROUBLE):
                text = answer[1:].decode(errors="replace")
                raise ValueError(f"worker {number}: {text}")
        return answers

    def exchange(self, message: bytes) -> list[bytes]:
        """The messages of all workers, in their order; each below `MAX_MESSAGE`.

        Raises:
            ValueError: this worker's is larger; the others wait for it.
        """
        _check_size(message)
        # Floats, because not every device gathers bytes; they hold these exactly.
        content = np.frombuffer(message, np.uint8).astype(np.float32)
        head = np.float32([self.number, len(message)])
        words = self._gather(tf.constant(np.concatenate([head, content]))).numpy()
        messages, at = {}, 0
        while at < len(words):  # each replica of a worker has sent the same
            number, size = map(int, words[at : at + 2])
            at += 2 + size
            messages[number] = words[at - size : at].astype(np.uint8).tobytes()
        return [messages[number] for number in range(self.count)]

    @functools.cached_property
    def _sum(self):
        def on_replica(value):
            context = tf.distribute.get_replica_context()
            # A tensor of the replica's own: it has a device.
            return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(value))

        return self._function(on_replica, tf.TensorSpec([], tf.float32))

    @functools.cached_property
    def _gather(self):
        def on_replica(words):
            context = tf.distribute.get_replica_context()
            return context.all_gather(tf.identity(words), axis=0)

        return self._function(on_replica, tf.TensorSpec([None], tf.float32))

    def _function(self, on_replica, spec):
        strategy = self._strategy

        @tf.function(input_signature=[spec])
        def on_all_replicas(value):
            values = strategy.run(on_replica, (value,))
            return strategy.experimental_local_results(values)[0]

        return on_all_replicas


def _check_size(message):
    if len(message) >= MAX_MESSAGE:
        raise ValueError(
            f"a worker's message has {len(message)} bytes, it must be below "
            f"{MAX_MESSAGE}"
        )

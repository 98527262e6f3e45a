"""Adam in one pass over a network's weights.

Keras writes Adam as a dozen element by element operations, each of which reads and
writes a whole weight. fc6 of VGG16 has 103 million of them, so on a CPU that takes
memory bandwidth which convolutions need, and room for the results in between.
"""

import keras
import tensorflow as tf


def count_updates(optimizer: keras.optimizers.Optimizer) -> int:
    """How many updates it has counted, also where each device has a count of its own.

    Args:
        optimizer: built.
    """
    return int(keras.ops.convert_to_numpy(optimizer.iterations))


@keras.saving.register_keras_serializable("ss_gan_tf")
class Adam(keras.optimizers.Adam):
    """`keras.optimizers.Adam`, same numbers and state, by TensorFlow's own kernel."""

    def update_step(self, gradient, variable, learning_rate):
        """Moves a variable and its two averages by one step.

            m += (1 - b1) (g - m),   v += (1 - b2) (g^2 - v)
            w -= rate sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v) + epsilon)

        Args:
            gradient: g, dense.
            variable: w.
            learning_rate: rate.
        """
        if self.amsgrad:
            return super().update_step(gradient, variable, learning_rate)
        index = self._get_variable_index(variable)
        slots = self._momentums[index], self._velocities[index]
        # Under a distribution strategy Keras hands over the plain variable.
        w, m, v = (
            x.value if isinstance(x, keras.Variable) else x for x in (variable, *slots)
        )
        step = tf.cast(self.iterations + 1, w.dtype)
        beta_1, beta_2 = (tf.constant(b, w.dtype) for b in (self.beta_1, self.beta_2))
        tf.raw_ops.ResourceApplyAdam(
            var=w.handle,
            m=m.handle,
            v=v.handle,
            beta1_power=beta_1**step,
            beta2_power=beta_2**step,
            lr=tf.cast(learning_rate, w.dtype),
            beta1=beta_1,
            beta2=beta_2,
            epsilon=tf.constant(self.epsilon, w.dtype),
            grad=tf.cast(gradient, w.dtype),
        )

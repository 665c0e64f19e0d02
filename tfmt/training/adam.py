"""Adam in one operation a variable."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras as keras


class FusedAdam(keras.optimizers.Adam):
    """Keras's Adam, each variable's update computed by TensorFlow's one kernel for it.

    Keras writes the same formula as about ten operations, each of which reads and writes memory the size of the
    variable: for a whole BERT that costs as much as the backward pass. Results agree with Keras's within rounding.
    """

    def _deduplicate_sparse_grad(self, grads: Any) -> Any:
        """Leaves rows that come twice as they are: `update_step` adds them up when it makes the gradient dense."""
        return grads

    def update_step(self, gradient: Any, variable: Any) -> None:
        """Moves one variable and its two slots."""
        dtype = variable.dtype
        step = tf.cast(self.iterations + 1, dtype)
        key = self._var_key(variable)
        index = self._index_dict[key]
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].handle,
            v=self._velocities[index].handle,
            beta1_power=tf.pow(tf.cast(self.beta_1, dtype), step),
            beta2_power=tf.pow(tf.cast(self.beta_2, dtype), step),
            lr=tf.cast(self.learning_rate, dtype),
            beta1=tf.cast(self.beta_1, dtype),
            beta2=tf.cast(self.beta_2, dtype),
            epsilon=tf.cast(self.epsilon, dtype),
            # The gradient of a table of embeddings is sparse, Adam's decay of its slots is not.
            grad=tf.convert_to_tensor(gradient),
        )

"""FusedAdam against Keras's Adam."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from tfmt.training.adam import FusedAdam
from tfmt.training.devices import make_devices


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("replicas", [None, 1])
def test_same_steps_as_keras(sparse, replicas):
    strategy = make_devices(1).strategy if replicas else tf.distribute.get_strategy()
    generator = np.random.default_rng(0)
    start = generator.normal(size=(7, 3)).astype(np.float32)
    ends = []
    for kind in (FusedAdam, keras.optimizers.Adam):
        generator = np.random.default_rng(1)
        with strategy.scope():
            optimizer, variable = kind(0.05, epsilon=1e-6), tf.Variable(start)
            optimizer.build([variable])

        def step(gradient, optimizer=optimizer, variable=variable):
            strategy.run(lambda g: optimizer.apply_gradients([(g, variable)]), args=(gradient,))

        for _ in range(20):
            gradient = tf.constant(generator.normal(size=(7, 3)).astype(np.float32))
            if sparse:
                gradient = tf.IndexedSlices(gradient[:3], tf.constant([1, 4, 1]), dense_shape=tf.constant([7, 3]))
            tf.function(step)(gradient)
        ends.append([variable.numpy(), *(slot.numpy() for slot in optimizer.variables[1:])])
    for ours, keras_own in zip(*ends, strict=True):
        np.testing.assert_allclose(ours, keras_own, atol=1e-5)
    assert np.abs(ends[0][0] - start).max() > 0.1

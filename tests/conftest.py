"""TensorFlow as every test sees it: quiet, legacy Keras, and two logical CPU devices.

The devices have to exist before anything initialises TensorFlow. One of them is what a test without a strategy uses;
`MirroredStrategy(["CPU:0", "CPU:1"])` runs two replicas without a GPU.
"""

import os

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def pytest_configure() -> None:
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

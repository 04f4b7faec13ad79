"""Every test here leaves TensorFlow's seed as it was."""

import pytest
import tensorflow as tf


@pytest.fixture(autouse=True)
def no_global_seed():
    """Keras sets TensorFlow's, which would stay for the other tests of the process."""
    yield
    tf.random.set_seed(None)

"""The devices and workers that share a training, by `tf.distribute`."""

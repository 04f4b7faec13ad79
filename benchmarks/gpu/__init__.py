"""The compiled update and whole trainings, for a GPU on a machine without TensorFlow."""

"""Model-agnostic meta-learning in TensorFlow 2, faithful to the official code."""

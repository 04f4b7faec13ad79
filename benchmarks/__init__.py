"""Measurements: what a meta-update costs, how the cost grows, and what the plain structure costs."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported, or it has no effect

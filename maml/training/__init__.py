"""From episodes to a trained run, and from a run to its test."""

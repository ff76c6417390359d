"""Evaluation of generated samples: features, metrics and physics checks."""

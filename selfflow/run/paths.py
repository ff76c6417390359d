"""Names in a run folder."""

AUTOENCODERS = "autoencoders"
"""Folder of the weights of each modality's autoencoder."""

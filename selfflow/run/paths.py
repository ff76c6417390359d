"""Names of files and folders in a run folder."""

AUTOENCODERS = "autoencoders"
"""Folder of the autoencoders' weights, one file for each modality."""

"""Weights files of torch and safetensors, read without executing anything."""

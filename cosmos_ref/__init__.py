"""Readable, proven and deployable reference implementation of the Cosmos-1.0 diffusion world model."""

__version__ = "0.1.0"

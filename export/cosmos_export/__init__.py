"""Run exported cosmos_ref denoisers without PyTorch."""

__version__ = "0.1.0"

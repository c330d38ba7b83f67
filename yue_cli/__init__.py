"""Turn lyrics into full songs with the YuE models."""

__version__ = "0.1.0"

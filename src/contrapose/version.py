"""The version of the library, for whatever records it."""

__version__ = "0.1.0"

"""The runtimes behind one protocol, what this machine has of them, and the predictor on top."""

from bertfast.backends.protocol import Backend, relative_error, tolerance
from bertfast.backends.registry import Availability, available, backends_for, installed_version, open_backend
from bertfast.backends.served import ServedModel, open_served

__all__ = [
    "Availability",
    "Backend",
    "ServedModel",
    "available",
    "backends_for",
    "installed_version",
    "open_backend",
    "open_served",
    "relative_error",
    "tolerance",
]

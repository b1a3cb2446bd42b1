"""The C++ compiler that torch.compile needs on a CPU."""

from __future__ import annotations

import os
import shutil


def cpp_compiler() -> str | None:
    """The path of the compiler that torch.compile would use, or None."""
    candidates = (os.environ.get("CXX"), "c++", "g++", "clang++")
    return next((found for name in candidates if name and (found := shutil.which(name))), None)

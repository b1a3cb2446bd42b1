"""The report as one HTML file."""

from __future__ import annotations

import importlib.util

from bertfast.errors import ConfigError


def require_reporting() -> None:
    """Raise ConfigError, before anything is measured, where a package that the report needs is missing."""
    for module, package in (("matplotlib", "matplotlib"), ("sklearn", "scikit-learn")):
        if importlib.util.find_spec(module) is None:
            raise ConfigError(f"the report needs {package}: pip install 'bertfast[bench]'")

"""Engines: shape plans, recipes, builders for TensorRT and TensorRT for RTX, and what an engine holds."""

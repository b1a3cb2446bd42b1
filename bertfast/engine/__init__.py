"""TensorRT engines: recipes, profiles planned from texts, the builder for two libraries, and what an engine holds."""

"""From a checkpoint to an ONNX artefact that was checked against its source before it was published."""

"""One loop for pretraining and fine-tuning, its optimiser, its data streams and its resumable state."""

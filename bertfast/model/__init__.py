"""The BERT encoder and its heads in PyTorch, and their weights in Hugging Face's layout."""

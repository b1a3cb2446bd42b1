"""From text to batches: documents, sentences, tokens, corpus shards, instances, labelled rows."""

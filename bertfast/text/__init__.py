"""From text to batches; the files in the order of the data:

files.py                which files the inputs are, and how one is opened
documents.py            raw documents from text, JSON lines and Parquet, as a stream
chunks.py               the inputs of a corpus in chunks of a bounded size
sentences.py            documents into sentences
tokenizer.py            WordPiece: train, load, encode
word_cache.py           token ids of sentences, a word at a time
duplicates.py           how much of a text repeats itself
build.py                from chunks to tokens, in the processes of this machine
ray_build.py            the same on a Ray cluster
shards.py               the files of a corpus while they grow
workplace.py            where a build lies until it is whole, and how it goes on after a cut
corpus.py               the corpus, written and read through memory maps
masking.py              which tokens are masked, and what they become
instances.py            MLM + NSP instances of a corpus
reference_tokenizer.py  the tokenisation of Google's reference code
reference.py            and its instances, one for one
labelled.py             labelled rows, for fine-tuning
requests.py             requests to a model as JSON lines
batch.py                the only thing that a model takes, and the grouping of sequences into batches
packing.py              the sequences of a step laid into rows of a fixed length
"""

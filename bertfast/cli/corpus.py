"""`bertfast corpus`: build corpora for pretraining."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from bertfast.cli.options import Out, Overwrite, TextColumn, choice, output, print_json
from bertfast.console import counting, counting_text
from bertfast.errors import ConfigError

corpus_app = typer.Typer(no_args_is_help=True, help="Build corpora for pretraining.")


@corpus_app.command("build")
def corpus_build(
    inputs: Annotated[list[Path], typer.Argument(help="Text files, JSON lines, Parquet, .gz of each, directories.")],
    out: Out,
    tokenizer: Annotated[Path | None, typer.Option(help="vocab.txt, tokenizer.json or a directory with one.")] = None,
    vocab_size: Annotated[
        int | None, typer.Option(min=100, help="Train a vocabulary of this size on the inputs.")
    ] = None,
    cased: Annotated[bool, typer.Option("--cased", help="Train a vocabulary that keeps case and accents.")] = False,
    documents: Annotated[
        str, typer.Option(help="What ends a document in plain text: blank-line or file.")
    ] = "blank-line",
    newlines: Annotated[str, typer.Option(help="What a line's end is: auto, sentence or wrapped.")] = "auto",
    text_column: TextColumn = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; one for each core when not given.")] = None,
    engine: Annotated[str, typer.Option(help="local, or ray: a Ray cluster that reads the inputs itself.")] = "local",
    overwrite: Overwrite = False,
) -> None:
    """Segment and tokenise raw text into a corpus for pretraining; a build that was cut off goes on where it was."""
    from bertfast.text import tokenizer as tokenization
    from bertfast.text.build import workforce_of
    from bertfast.text.corpus import build_corpus_of_files
    from bertfast.text.documents import Boundary, TextFormat
    from bertfast.text.sentences import Newlines
    from bertfast.text.workplace import NewVocabulary

    if (tokenizer is None) == (vocab_size is None):
        raise ConfigError("give either --tokenizer PATH to use a vocabulary or --vocab-size N to train one.")
    boundary = cast(Boundary, choice("--documents", documents, ("blank-line", "file")))
    ends = cast(Newlines, choice("--newlines", newlines, ("auto", "sentence", "wrapped")))
    if cased and tokenizer:
        raise ConfigError("--cased is of a vocabulary that is trained; --tokenizer keeps case or not as it was made.")
    workforce = workforce_of(choice("--engine", engine, ("local", "ray")), workers)
    with counting_text() as count:
        build_corpus_of_files(
            inputs,
            out,
            tokenization.load(tokenizer) if tokenizer else NewVocabulary(vocab_size or 0, lowercase=not cased),
            text_format=TextFormat(boundary, text_column),
            newlines=ends,
            workforce=workforce,
            overwrite=overwrite,
            on_progress=count,
        )
    print_json({"corpus": str(out), **_settings_of(out)})


@corpus_app.command("verify")
def corpus_verify(corpus: Annotated[Path, typer.Argument(help="A corpus of 'bertfast corpus build'.")]) -> None:
    """Check every file of a corpus against the hash that it was published with."""
    from bertfast.text.corpus import verify_corpus

    manifest = verify_corpus(corpus)
    size = sum(record.bytes for record in manifest.files.values())
    print_json({"corpus": str(corpus), "sha256": manifest.sha256, "files": len(manifest.files), "bytes": size})


@corpus_app.command("instances")
def corpus_instances(
    inputs: Annotated[list[Path], typer.Argument(help="Text files: a sentence a line, a blank line after a document.")],
    vocab: Annotated[Path, typer.Option(help="vocab.txt, one token a line.")],
    out: Annotated[Path, typer.Option("--out", help="JSON lines to write. The file appears whole or not at all.")],
    mode: Annotated[str, typer.Option(help="google: as create_pretraining_data.py makes them.")] = "google",
    seed: Annotated[int, typer.Option(help="Seed of all random draws.")] = 12345,
    max_seq_length: Annotated[int, typer.Option(help="Tokens of an instance, [CLS] and [SEP] included.")] = 128,
    max_predictions_per_seq: Annotated[int, typer.Option(help="Masked tokens of an instance, at the most.")] = 20,
    masked_lm_prob: Annotated[float, typer.Option(help="Share of the tokens that is masked.")] = 0.15,
    dupe_factor: Annotated[int, typer.Option(help="Passes over the text, each masked in another way.")] = 10,
    short_seq_prob: Annotated[float, typer.Option(help="Share of documents that make shorter instances.")] = 0.1,
    whole_word_mask: Annotated[bool, typer.Option("--whole-word-mask", help="Mask all pieces of a word.")] = False,
    cased: Annotated[bool, typer.Option("--cased", help="Keep case and accents, for a cased vocabulary.")] = False,
) -> None:
    """Write the instances that Google's BERT code makes: for comparison and small texts, as memory holds them all."""
    from bertfast.text import reference, reference_tokenizer

    choice("--mode", mode, ("google",))
    settings = {
        "seed": seed,
        "max_seq_length": max_seq_length,
        "max_predictions_per_seq": max_predictions_per_seq,
        "masked_lm_prob": masked_lm_prob,
        "dupe_factor": dupe_factor,
        "short_seq_prob": short_seq_prob,
        "whole_word_mask": whole_word_mask,
    }
    config = reference.ReferenceConfig.parse(settings, "corpus instances")
    tokenizer = reference_tokenizer.load(vocab, lowercase=not cased)
    with output(str(out.absolute())) as sink:
        with counting("sentences") as count:
            documents = reference.read_documents(inputs, tokenizer, count)
        with counting("instances") as count:
            instances = reference.make_instances(documents, tokenizer.vocabulary, config, count)
        sink.writelines(json.dumps(vars(instance), ensure_ascii=False) + "\n" for instance in instances)
    print_json({"file": str(out), "documents": len(documents), "instances": len(instances)})


def _settings_of(path: Path) -> dict[str, Any]:
    from bertfast import artifact

    settings = artifact.open_manifest(path, verify_hashes=False).settings
    return {
        key: settings[key] for key in ("vocab_size", "documents", "sentences", "tokens", "duplicate_sentence_share")
    }

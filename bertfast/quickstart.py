"""`bertfast quickstart`: the whole way on text that every machine has, the documentation inside Python itself.

Documents are modules: the docstrings of the standard library and of the installed packages, and the topics of
`pydoc`. The model is pretrained on them, then learns to tell from a docstring which package it belongs to, with the
package's own name taken out. A module is either in the training part or in the held-out part, never in both.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import re
import sys
import sysconfig
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from bertfast import artifact
from bertfast.bench.report import print_table
from bertfast.bench.results import Results
from bertfast.bench.run import BenchPlan, bench
from bertfast.config import FinetuneConfig, PretrainConfig
from bertfast.errors import DataError
from bertfast.text import tokenizer as tokenization
from bertfast.text.corpus import build_corpus, open_corpus
from bertfast.text.documents import read_documents

VOCAB_SIZE = 8192
MODEL = {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
    "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
PRETRAIN = PretrainConfig(
    max_length=64,
    max_steps=900,
    global_batch_size=32,
    learning_rate=1e-3,
    warmup_fraction=0.1,
    heldout_fraction=0.05,
    heldout_instances=512,
    compile=False,
)
FINETUNE = FinetuneConfig(max_length=64, epochs=2, global_batch_size=32, learning_rate=3e-4, compile=False)
MAX_LABELS = 8
ROWS_PER_LABEL = 400
DEV_ROWS_PER_LABEL = 75
MAX_PACKAGES = 12
MAX_MODULES = 200
MAX_DOCUMENT_CHARS = 20_000
MIN_ROW_CHARS, MAX_ROW_CHARS = 40, 200
_NOT_READ = {"pip", "setuptools", "bertfast"}
_SKIPPED_FOLDERS = {
    "test",
    "tests",
    "testing",
    "site-packages",
    "__pycache__",
    "idlelib",
    "_vendor",
    "vendor",
    "lib2to3",
}

console = Console(stderr=True)


@dataclass(frozen=True)
class Module:
    """The docstrings of one module, cleaned; each is one or more paragraphs, a line each."""

    package: str
    name: str
    docstrings: tuple[str, ...]


def run(out: Path) -> Results:
    """Go the whole way and print what came out; everything lies under `out` afterwards."""
    from bertfast.export.export import export
    from bertfast.model.weights import open_checkpoint
    from bertfast.tasks import get_task
    from bertfast.train.finetune import finetune
    from bertfast.train.pretrain import pretrain

    started_s = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    with _stage("reading the documentation that this Python carries"):
        modules = list(read_modules())
        with artifact.create(out / "data", "data", overwrite=True) as draft:
            rows = write_data(modules, draft.path)
    with _stage(f"training a vocabulary of {VOCAB_SIZE:,} and building the corpus"):
        documents = out / "data" / "documents.jsonl"
        tokenizer = tokenization.train(lambda: read_documents([documents]), VOCAB_SIZE)
        with warnings.catch_warnings():  # docstrings are inherited, and nobody is to mend them for this
            warnings.filterwarnings("ignore", message=".* repeat an earlier one")
            build_corpus(read_documents([documents]), out / "corpus", tokenizer, overwrite=True)
        corpus = open_corpus(out / "corpus")
    _say(f"{corpus.num_documents:,} documents, {corpus.num_sentences:,} sentences, {corpus.num_tokens:,} tokens")
    with _stage("pretraining: masked language modelling and next-sentence prediction"):
        pretrained = pretrain(corpus, out / "pretrained", PRETRAIN, model_settings=dict(MODEL), overwrite=True)
    start, task = open_checkpoint(out / "pretrained"), get_task("classify")
    files = (out / "data" / "train.jsonl", out / "data" / "dev.jsonl")
    with _stage("fine-tuning: which package is this docstring from?"):
        tuned = finetune(start, task, *files, out / "classifier", FINETUNE, overwrite=True)
    with _stage("the same without pretraining"):
        scratch = finetune(
            start, task, *files, out / "classifier-from-scratch", FINETUNE, from_scratch=True, overwrite=True
        )
    with _stage("exporting to ONNX, checked against the source"):
        export(out / "classifier", out / "onnx", overwrite=True)
    with _stage("benchmarking every backend that is here"):
        plan = BenchPlan((out / "classifier", out / "onnx"), files[1], "bertfast quickstart", repeats=3)
        report = bench(plan, out / "report", overwrite=True)
    _print_results(pretrained, tuned, scratch, rows, report, out)
    print(f"elapsed: {time.monotonic() - started_s:.0f} s")
    return report


def read_modules() -> Iterator[Module]:
    """Modules with docstrings: `pydoc`'s topics, the standard library, and the installed packages."""
    from pydoc_data.topics import topics

    for name, text in sorted(topics.items()):
        yield Module("python", f"topics.{name}", (_clean(text),))
    library = Path(sysconfig.get_path("stdlib"))
    yield from _package_modules("python", library, _python_files(library))
    installed = Path(sysconfig.get_path("purelib"))
    packages = {
        path.name: _python_files(path)
        for path in installed.iterdir()
        if (path / "__init__.py").is_file() and path.name not in _NOT_READ
    }
    for package in sorted(sorted(packages), key=lambda name: -len(packages[name]))[:MAX_PACKAGES]:
        yield from _package_modules(package, installed / package, packages[package])


def write_data(modules: Sequence[Module], out: Path) -> dict[str, int]:
    """Write documents.jsonl, train.jsonl and dev.jsonl into `out`; held-out modules are in dev.jsonl alone.

    Returns:
        Rows for training and for evaluation, labels.
    Raises:
        DataError: fewer than two packages with enough docstrings.
    """
    training = [module for module in modules if not is_heldout(module)]
    heldout = [module for module in modules if is_heldout(module)]
    documents = ("\n".join(module.docstrings)[:MAX_DOCUMENT_CHARS] for module in training)
    _write_json_lines(out / "documents.jsonl", ({"text": text} for text in documents))
    common = Counter(module.package for module in training for _ in module.docstrings).most_common(MAX_LABELS)
    labels = [name for name, count in common if count >= 100]
    if len(labels) < 2:
        raise DataError(
            f"only {len(labels)} installed package(s) carry 100 docstrings, and telling packages apart needs 2. "
            "Install the extras first: pip install 'bertfast[cpu,train,bench]'"
        )
    train_rows = list(_labelled_rows(training, labels, ROWS_PER_LABEL, set()))
    # Packages copy docstrings from each other: what any training module says, in whatever package, is not in dev.
    said = {_row_text(docstring, module.package) for module in training for docstring in module.docstrings}
    said |= {row["text"] for row in train_rows}
    dev_rows = list(_labelled_rows(heldout, labels, DEV_ROWS_PER_LABEL, said))
    _write_json_lines(out / "train.jsonl", train_rows)
    _write_json_lines(out / "dev.jsonl", dev_rows)
    return {"train": len(train_rows), "dev": len(dev_rows), "labels": len(labels)}


def is_heldout(module: Module) -> bool:
    """Every tenth module or so, by the hash of its name."""
    return hashlib.sha256(f"{module.package}/{module.name}".encode()).digest()[0] < 26


def without_name(text: str, package: str) -> str:
    """The text without the package's own name, however it is written."""
    names = {package, package.lstrip("_"), {"sklearn": "scikit-learn", "matplotlib": "pyplot"}.get(package, package)}
    return re.sub("|".join(map(re.escape, sorted(names, key=len, reverse=True))), " ", text, flags=re.IGNORECASE)


def _labelled_rows(
    modules: Iterable[Module], labels: Sequence[str], most: int, seen: set[str]
) -> Iterator[dict[str, str]]:
    """Docstrings, cut where they are long; at most `most` a label, spread over its modules, none that was `seen`."""
    for label in labels:
        pool = [
            (hashlib.sha256(text.encode()).digest(), text)
            for module in modules
            if module.package == label
            for text in module.docstrings
        ]
        taken = 0
        for _, docstring in sorted(pool):
            text = _row_text(docstring, label)
            if taken < most and len(text) >= MIN_ROW_CHARS and text not in seen:
                seen.add(text)
                taken += 1
                yield {"text": text, "label": label}


def _row_text(docstring: str, package: str) -> str:
    return without_name(docstring, package).replace("\n", " ")[:MAX_ROW_CHARS]


def _python_files(root: Path) -> list[Path]:
    files = (
        path for path in root.rglob("*.py") if not _SKIPPED_FOLDERS.intersection(path.relative_to(root).parts[:-1])
    )
    return sorted(files)


def _package_modules(package: str, root: Path, files: Sequence[Path]) -> Iterator[Module]:
    """Modules of a package, evenly spread where it has more than `MAX_MODULES`."""
    step = max(1, -(-len(files) // MAX_MODULES))
    for path in files[::step]:
        docstrings = tuple(_docstrings(path))
        if docstrings:
            yield Module(package, path.relative_to(root).as_posix(), docstrings)


def _docstrings(path: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError, ValueError, RecursionError):
        return  # other Pythons' files and templates lie among the packages
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, documented) and (text := ast.get_docstring(node, clean=False)):
            cleaned = _clean(text)
            if len(cleaned) >= MIN_ROW_CHARS:
                yield cleaned


def _clean(text: str) -> str:
    """A docstring's prose, a paragraph a line: no examples at the prompt, no rules drawn with punctuation."""
    paragraphs = []
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        lines = [line.strip() for line in paragraph.splitlines()]
        prose = [line for line in lines if re.search(r"\w", line) and not line.startswith((">>>", "..."))]
        if prose and not lines[0].startswith(">>>"):
            paragraphs.append(re.sub(r"\s+", " ", " ".join(prose)))
    return "\n".join(paragraphs)


def _write_json_lines(path: Path, rows: Iterable[dict[str, str]]) -> None:
    with path.open("w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


@contextmanager
def _stage(name: str) -> Iterator[None]:
    console.print(f"[bold]{name}[/]", highlight=False)
    started_s = time.monotonic()
    yield
    console.print(f"  done in {time.monotonic() - started_s:.0f} s", style="dim", highlight=False)


def _say(text: str) -> None:
    console.print("  " + text, style="dim", highlight=False)


def _print_results(
    pretrained: dict[str, float],
    tuned: dict[str, float],
    scratch: dict[str, float],
    rows: dict[str, int],
    report: Results,
    out: Path,
) -> None:
    lines = (
        (
            "held-out MLM loss",
            f"{pretrained['heldout_mlm']:.3f} nats",
            "unigram entropy",
            pretrained["unigram_entropy"],
        ),
        (
            "held-out NSP accuracy",
            f"{pretrained['heldout_nsp_accuracy']:.1%}",
            "the commoner answer",
            pretrained["nsp_majority"],
        ),
        ("classifier accuracy", f"{tuned['dev_accuracy']:.1%}", "without pretraining", scratch["dev_accuracy"]),
        ("", "", f"the commonest of {rows['labels']} packages", tuned["dev_majority"]),
    )
    print()
    for name, value, baseline, number in lines:
        shown = f"{number:.3f} nats" if "entropy" in baseline else f"{number:.1%}"
        print(f"{name:22} {value:>12}   {baseline + ':':30} {shown}")
    sys.stdout.flush()
    print_table(report)
    print(f"report: {(out / 'report' / 'report.html').resolve()}")

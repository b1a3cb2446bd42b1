"""Fine-tuning as a user of transformers does it: the Trainer, bf16, dynamic padding.

    .venv/bin/python finetune.py JOB.json

Reads one job (job.py) and prints its result as one line of JSON. Tokenisation comes before the clock starts, nothing is
evaluated or saved while it runs, and its seconds are the Trainer's own `train_runtime`. The loop is the Trainer's
default in all that a job does not say: fused AdamW, linear decay after the warm-up, gradients clipped at 1.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import string
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from job import Job, Result
from scipy.stats import pearsonr, spearmanr
from seqeval.metrics import f1_score, precision_score, recall_score
from sklearn.metrics import accuracy_score
from sklearn.metrics import f1_score as class_f1_score
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BatchEncoding,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

MODEL_INPUTS = ("input_ids", "token_type_ids", "attention_mask")
IGNORE_INDEX = -100
DOC_STRIDE = 128  # by which windows move on, as bertfast counts it
MAX_QUESTION_TOKENS = 64
MAX_ANSWER_TOKENS = 30
EVALUATION_BATCH = 64
PACKAGES = ("torch", "transformers", "accelerate", "datasets", "tokenizers", "scikit-learn", "seqeval")

Score = Callable[[Any], dict[str, float]]


@dataclass(frozen=True)
class Prepared:
    """A model with a fresh head, tokenised data, and how the outputs on `dev` are scored."""

    model: torch.nn.Module
    collator: Any
    train: Dataset
    dev: Dataset
    score: Score


def classify(job: Job, tokenizer: Any) -> Prepared:
    train, dev = read_json_lines(job.train), read_json_lines(job.dev)
    ids = {label: number for number, label in enumerate(sorted({row["label"] for row in train}))}
    expected = [ids[row["label"]] for row in dev]

    def score(logits: np.ndarray) -> dict[str, float]:
        chosen = logits.argmax(1)
        macro_f1 = class_f1_score(expected, chosen, average="macro")
        return {"accuracy": float(accuracy_score(expected, chosen)), "macro_f1": float(macro_f1)}

    return Prepared(
        AutoModelForSequenceClassification.from_pretrained(job.model, num_labels=len(ids)),
        DataCollatorWithPadding(tokenizer),
        encode_texts(train, [ids[row["label"]] for row in train], tokenizer, job),
        encode_texts(dev, expected, tokenizer, job),
        score,
    )


def regress(job: Job, tokenizer: Any) -> Prepared:
    train, dev = read_json_lines(job.train), read_json_lines(job.dev)
    expected = [float(row["label"]) for row in dev]

    def score(logits: np.ndarray) -> dict[str, float]:
        found = logits[:, 0]
        correlations = {"pearson": pearsonr(found, expected), "spearman": spearmanr(found, expected)}
        return {name: float(value.statistic) for name, value in correlations.items()}

    return Prepared(
        AutoModelForSequenceClassification.from_pretrained(job.model, num_labels=1, problem_type="regression"),
        DataCollatorWithPadding(tokenizer),
        encode_texts(train, [float(row["label"]) for row in train], tokenizer, job),
        encode_texts(dev, expected, tokenizer, job),
        score,
    )


def encode_texts(rows: Sequence[dict[str, Any]], labels: Sequence[float], tokenizer: Any, job: Job) -> Dataset:
    pairs = [row["pair"] for row in rows] if "pair" in rows[0] else None
    encoded = tokenizer([row["text"] for row in rows], pairs, truncation=True, max_length=job.max_length)
    return Dataset.from_dict({**encoded, "labels": labels})


def tag(job: Job, tokenizer: Any) -> Prepared:
    train, dev = read_conll(job.train), read_conll(job.dev)
    names = sorted({label for _, labels in train for label in labels})
    ids = {label: number for number, label in enumerate(names)}
    train_set, _ = encode_words(train, ids, tokenizer, job)
    dev_set, first_pieces = encode_words(dev, ids, tokenizer, job)
    expected = [labels for _, labels in dev]

    def score(logits: np.ndarray) -> dict[str, float]:
        found = []
        for labels, pieces, row in zip(expected, first_pieces, logits.argmax(-1), strict=True):
            tags = ["O"] * len(labels)  # what was cut off stays outside
            for word, place in pieces.items():
                tags[word] = names[row[place]]
            found.append(tags)
        measures = {"precision": precision_score, "recall": recall_score, "f1": f1_score}
        return {name: float(measure(expected, found)) for name, measure in measures.items()}

    model = AutoModelForTokenClassification.from_pretrained(job.model, num_labels=len(names))
    return Prepared(model, DataCollatorForTokenClassification(tokenizer), train_set, dev_set, score)


def encode_words(
    sentences: Sequence[tuple[list[str], list[str]]], ids: dict[str, int], tokenizer: Any, job: Job
) -> tuple[Dataset, list[dict[int, int]]]:
    """The sentences, each label at its word's first piece; and the place of that piece by word."""
    words = [tokens for tokens, _ in sentences]
    encoded = tokenizer(words, is_split_into_words=True, truncation=True, max_length=job.max_length)
    rows, first_pieces = [], []
    for number, (_, labels) in enumerate(sentences):
        places: dict[int, int] = {}
        for place, word in enumerate(encoded.word_ids(number)):
            if word is not None:
                places.setdefault(word, place)
        row = [IGNORE_INDEX] * len(encoded["input_ids"][number])
        for word, place in places.items():
            row[place] = ids.get(labels[word], IGNORE_INDEX)
        rows.append(row)
        first_pieces.append(places)
    return Dataset.from_dict({**encoded, "labels": rows}), first_pieces


def answer(job: Job, tokenizer: Any) -> Prepared:
    train, dev = read_squad(job.train), read_squad(job.dev)
    windows = encode_windows(dev, tokenizer, job)

    def score(logits: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
        return squad_scores(best_answers(dev, windows, *logits), [row["answers"]["text"] for row in dev])

    return Prepared(
        AutoModelForQuestionAnswering.from_pretrained(job.model),
        DataCollatorWithPadding(tokenizer),
        answerable(train, encode_windows(train, tokenizer, job)),
        Dataset.from_dict({name: windows[name] for name in MODEL_INPUTS}),
        score,
    )


def encode_windows(rows: Sequence[dict[str, Any]], tokenizer: Any, job: Job) -> BatchEncoding:
    """Windows that move on by DOC_STRIDE tokens, or by half of their room where that is less.

    The tokenizer's `stride` is what two windows share. That depends on the question's length, so questions are
    encoded together with those that are as long.
    """
    sizes = [len(ids) for ids in tokenizer([row["question"] for row in rows], add_special_tokens=False)["input_ids"]]
    longest = min(MAX_QUESTION_TOKENS, (job.max_length - 3) // 2)
    columns: dict[str, list[Any]] = defaultdict(list)
    encodings = []
    for size in sorted(set(sizes)):
        if size > longest:
            raise SystemExit(f"a question has {size} tokens, and {longest} are the most of which windows are alike.")
        places = [place for place, found in enumerate(sizes) if found == size]
        room = job.max_length - 3 - size
        windows = tokenizer(
            [rows[place]["question"] for place in places],
            [rows[place]["context"] for place in places],
            truncation="only_second",
            max_length=job.max_length,
            stride=room - min(DOC_STRIDE, max(1, room // 2)),
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        for name, values in windows.items():
            columns[name] += values
        columns["source"] += [places[place] for place in windows["overflow_to_sample_mapping"]]
        encodings += windows.encodings
    return BatchEncoding(columns, encodings)


def answerable(rows: Sequence[dict[str, Any]], windows: Any) -> Dataset:
    """Windows with the first answer's tokens as targets; a window that lacks some of it points at [CLS]."""
    starts, ends = [], []
    for number, source in enumerate(windows["source"]):
        answers = rows[source]["answers"]
        first = answers["answer_start"][0]
        last = first + len(answers["text"][0]) - 1
        start = windows.char_to_token(number, first, sequence_index=1)
        end = windows.char_to_token(number, last, sequence_index=1)
        inside = start is not None and end is not None
        starts.append(start if inside else 0)
        ends.append(end if inside else 0)
    inputs = {name: windows[name] for name in MODEL_INPUTS}
    return Dataset.from_dict({**inputs, "start_positions": starts, "end_positions": ends})


def best_answers(rows: Sequence[dict[str, Any]], windows: Any, starts: np.ndarray, ends: np.ndarray) -> list[str]:
    """For each question the span, over all its windows, whose start and end logits have the largest sum."""
    best = [(-np.inf, "")] * len(rows)
    for number, source in enumerate(windows["source"]):
        places = [place for place, part in enumerate(windows.sequence_ids(number)) if part == 1]
        if not places:
            continue
        first, size = places[0], len(places)
        sums = starts[number, first : first + size, None] + ends[number, None, first : first + size]
        allowed = np.triu(np.ones((size, size), bool)) & ~np.triu(np.ones((size, size), bool), MAX_ANSWER_TOKENS)
        start, end = np.unravel_index(np.where(allowed, sums, -np.inf).argmax(), sums.shape)
        if sums[start, end] > best[source][0]:
            offsets = windows["offset_mapping"][number]
            text = rows[source]["context"][offsets[first + start][0] : offsets[first + end][1]]
            best[source] = sums[start, end], text
    return [text for _, text in best]


def squad_scores(found: Sequence[str], expected: Sequence[Sequence[str]]) -> dict[str, float]:
    """Exact match and F1 of words after SQuAD v1.1's normalisation; of several right answers the nearest counts."""
    exact, overlap = [], []
    for text, answers in zip(found, expected, strict=True):
        words = normalised(text)
        exact.append(max(words == normalised(right) for right in answers))
        overlap.append(max(word_f1(words, normalised(right)) for right in answers))
    return {"exact_match": float(np.mean(exact)), "f1": float(np.mean(overlap))}


def normalised(text: str) -> list[str]:
    """Words in lower case, without ASCII punctuation and articles."""
    plain = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def word_f1(found: list[str], right: list[str]) -> float:
    common = sum((Counter(found) & Counter(right)).values())
    return 2 * common / (len(found) + len(right)) if common else 0.0


TASKS: dict[str, Callable[[Job, Any], Prepared]] = {"classify": classify, "regress": regress, "tag": tag, "qa": answer}


def read_json_lines(path: str) -> list[dict[str, Any]]:
    with Path(path).open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def read_conll(path: str) -> list[tuple[list[str], list[str]]]:
    """Sentences as their tokens and labels."""
    blocks = Path(path).read_text(encoding="utf-8").strip("\n").split("\n\n")
    return [unzip(line.split("\t") for line in block.split("\n")) for block in blocks]


def unzip(pairs: Iterable[Sequence[str]]) -> tuple[list[str], list[str]]:
    tokens, labels = zip(*pairs, strict=True)
    return list(tokens), list(labels)


def read_squad(path: str) -> list[dict[str, Any]]:
    """Questions, in the columns that the data set has on the hub."""
    articles = json.loads(Path(path).read_text(encoding="utf-8"))["data"]
    return [
        {
            "question": question["question"],
            "context": paragraph["context"],
            "answers": {key: [right[key] for right in question["answers"]] for key in ("text", "answer_start")},
        }
        for article in articles
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    ]


def run(job: Job) -> Result:
    """Fine-tune, then evaluate once."""
    torch.set_num_threads(job.threads)
    set_seed(job.seed)  # the head is drawn now
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    prepared = TASKS[job.task](job, tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=prepared.model,
            args=arguments(job, folder),
            data_collator=prepared.collator,
            train_dataset=prepared.train,
            processing_class=tokenizer,
        )
        output = trainer.train()
        trainer.args.train_sampling_strategy = "random"  # grouped by length, predictions would be in another order
        predictions = trainer.predict(prepared.dev.select_columns(list(MODEL_INPUTS))).predictions
    return {
        "metrics": prepared.score(predictions),
        "train_s": output.metrics["train_runtime"],
        "steps": output.global_step,
        "windows": {"train": len(prepared.train), "dev": len(prepared.dev)},
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def arguments(job: Job, folder: str) -> TrainingArguments:
    return TrainingArguments(
        output_dir=folder,
        learning_rate=job.learning_rate,
        num_train_epochs=job.epochs,
        per_device_train_batch_size=job.batch_size,
        per_device_eval_batch_size=EVALUATION_BATCH,
        warmup_steps=job.warmup_fraction,  # below 1: a share of all steps
        weight_decay=job.weight_decay,
        lr_scheduler_type="linear",
        train_sampling_strategy="group_by_length" if job.group_by_length else "random",
        bf16=True,
        use_cpu=True,
        seed=job.seed,
        eval_strategy="no",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_num_workers=0,
    )


if __name__ == "__main__":
    result = run(Job(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
    print(json.dumps(result))

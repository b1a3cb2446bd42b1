"""benchmarks/peers: each answers as transformers does, whatever the batches, in the environment that it pins."""

from __future__ import annotations

import json
import math
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bertfast
from benchmarks.peers import classifier as shared
from bertfast.backends import open_served
from bertfast.bench.candidates import peer_candidates
from bertfast.bench.child import Watch, import_file
from bertfast.bench.worker import Worker
from bertfast.model.tensors import read_tensors
from tests.conftest import labelled_rows

PEERS = Path(__file__).parents[1] / "benchmarks" / "peers"
VARIANTS = [
    f"{path.parent.name}:{variant}"
    for path in sorted(PEERS.glob("*/variants.toml"))
    for variant in tomllib.loads(path.read_text(encoding="utf-8"))
]
LABELS = ("building", "nature", "tool")
MAX_LENGTH = 64
FP32_TOLERANCE = 1e-4
REDUCED_TOLERANCE = 0.02
PATIENCE_S = 600

TEXTS = [{"text": row["text"]} for row in labelled_rows(6, 3)] + [{"text": "The bridge " * 60}]
PAIRS = [{"text": row["text"], "pair": other["text"]} for row, other in zip(TEXTS, TEXTS[::-1], strict=True)]


def transformers_scores(checkpoint: Path, requests: Sequence[dict[str, str]]) -> np.ndarray:
    """The probabilities [N, C] by transformers in this environment, one request at a time."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
    rows = []
    for request in requests:
        inputs = tokenizer(*request.values(), truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
        with torch.inference_mode():
            rows.append(model(**inputs).logits.softmax(-1)[0].numpy())
    return np.array(rows)


def scores(answers: Sequence[dict[str, Any]]) -> np.ndarray:
    for answer in answers:
        assert answer["score"] == answer["scores"][answer["label"]] == max(answer["scores"].values())
    return np.array([[answer["scores"][label] for label in LABELS] for answer in answers])


@contextmanager
def asked(peer: str, checkpoint: Path) -> Iterator[tuple[Worker, dict[str, Any]]]:
    """A peer's process that has loaded the checkpoint, with what it says of itself."""
    folder = PEERS / peer.partition(":")[0]
    if not (folder / ".venv" / ".installed").exists():
        pytest.skip(f"{folder.name} has no environment: make peer-{folder.name}")
    (candidate,) = peer_candidates([str(PEERS / peer)], [open_served(checkpoint)])
    worker = Worker(candidate.module, candidate.python, threads=1)
    try:
        yield worker, worker.ask("load", PATIENCE_S, job=candidate.job(threads=1))
    finally:
        worker.stop()


@pytest.mark.slow
@pytest.mark.peers
@pytest.mark.timeout(2 * PATIENCE_S)
@pytest.mark.parametrize("peer", VARIANTS)
def test_a_peer_answers_as_transformers_does(peer: str, classifier: Path) -> None:
    rows = [json.dumps({key: row[key] for key in ("text", "label")}) for row in labelled_rows(32, 4)]
    classifier.with_name("train.jsonl").write_text("\n".join(rows), encoding="utf-8")
    with asked(peer, classifier) as (worker, facts):
        tolerance = FP32_TOLERANCE if facts["precision"] == "fp32" else REDUCED_TOLERANCE
        assert facts["libraries"]
        for requests in (PAIRS,) if peer.startswith("sentence_transformers") else (TEXTS, PAIRS):
            expected = transformers_scores(classifier, requests)
            worker.ask("data", PATIENCE_S, requests=requests)
            for batch_size in (32, 3, 1):
                found = scores(worker.ask("predict", PATIENCE_S, batch_size=batch_size))
                assert abs(found - expected).max() < tolerance
            assert worker.ask("offline", PATIENCE_S, in_order=True, batch_size=3)["elapsed_s"] > 0
        worker.ask("grid", PATIENCE_S, batch_size=2, length=16)


@pytest.mark.slow
@pytest.mark.peers
@pytest.mark.timeout(2 * PATIENCE_S)
def test_sentence_transformers_has_our_vectors(encoder: Path) -> None:
    with asked("sentence_transformers:fp32", encoder) as (worker, _), bertfast.load(encoder) as ours:
        for requests in (TEXTS, PAIRS):
            worker.ask("data", PATIENCE_S, requests=requests)
            found = worker.ask("predict", PATIENCE_S, batch_size=3)
            for answer, expected in zip(found, ours.predict(requests), strict=True):
                expected.pop("truncated", None)
                assert answer.keys() == expected.keys()
                for name, value in expected.items():
                    np.testing.assert_allclose(answer[name], value, atol=FP32_TOLERANCE)


def test_every_peer_pins_what_it_installs() -> None:
    folders = sorted(path.parent for path in PEERS.glob("*/peer.py"))
    assert len(folders) == 5
    assert sorted({name.partition(":")[0] for name in VARIANTS}) == [folder.name for folder in folders]
    for folder in folders:
        lines = (folder / "requirements.txt").read_text(encoding="utf-8").splitlines()
        assert all("==" in line for line in lines if not line.startswith("#"))


@given(lengths=st.lists(st.integers(1, 9)), batch_size=st.integers(1, 7), in_order=st.booleans())
def test_batches_hold_every_place_once(lengths: list[int], batch_size: int, in_order: bool) -> None:
    found = [list(batch) for batch in shared.batches(lengths, batch_size, in_order=in_order)]
    places = [place for batch in found for place in batch]
    assert [len(batch) for batch in found[:-1]] == [batch_size] * (len(found) - 1)
    assert sorted(places) == list(range(len(lengths)))
    if in_order:
        assert places == sorted(places)
    else:
        assert [lengths[place] for place in places] == sorted(lengths, reverse=True)


def test_scores_are_softmax_by_label() -> None:
    (answer,) = shared.decode(np.array([[0.0, math.log(3)]], np.float32), ["no", "yes"])
    assert answer["label"] == "yes"
    assert answer["scores"] == pytest.approx({"no": 0.25, "yes": 0.75})
    assert answer["score"] == answer["scores"]["yes"]


def words(texts: Sequence[str], pairs: Sequence[str] | None, *, truncation: bool, max_length: int) -> dict[str, Any]:
    """A tokenizer whose ids are the lengths of the words."""
    assert truncation
    rows = [f"{text} {pair}".split()[:max_length] for text, pair in zip(texts, pairs or [""] * len(texts), strict=True)]
    return {"input_ids": [[len(word) for word in row] for row in rows]}


def counting(batches: list[list[int]], *, pads: bool = True) -> shared.Classifier:
    """A classifier that takes the first id for the class, and notes the lengths of its batches."""

    def run(rows: shared.Rows, watch: shared.Watch) -> np.ndarray:
        batches.append([len(row["input_ids"]) for row in rows])
        with watch("compute"):
            return np.array([np.eye(3)[row["input_ids"][0] - 1] for row in rows])

    return shared.Classifier({}, words, LABELS, 4, list, run, pads)


@pytest.mark.parametrize(("in_order", "expected"), [(True, [[1, 4], [2]]), (False, [[4, 2], [1]])])
def test_answers_come_in_the_order_of_the_requests(in_order: bool, expected: list[list[int]]) -> None:
    batches: list[list[int]] = []
    ticks = iter(range(100))
    watch = Watch(lambda: next(ticks))
    requests = [{"text": "aa"}, {"text": "aaa b c d e"}, {"text": "a b"}]
    answers = counting(batches).answer(requests, watch, in_order=in_order, batch_size=2)
    assert [answer["label"] for answer in answers] == ["nature", "tool", "building"]
    assert batches == expected
    assert watch.phases_s == {"tokenize": 3, "compute": 2, "decode": 2}
    assert watch.padded_tokens == sum(max(batch) * len(batch) for batch in expected)
    assert counting([]).lengths(requests) == [[1], [4], [2]]


def test_what_removes_padding_counts_none() -> None:
    watch = Watch(lambda: 0.0)
    counting([], pads=False).answer(
        [{"text": "a"}, {"text": "a b", "pair": "c"}][:1], watch, in_order=True, batch_size=9
    )
    counting([], pads=False).answer([{"text": "a", "pair": "b c"}], watch, in_order=True, batch_size=None)
    assert watch.padded_tokens == 1 + 3


def test_other_tasks_are_refused() -> None:
    with pytest.raises(ValueError, match="classify and embed, and the task is qa"):
        shared.refuse_other_tasks({"task": "qa"}, "classify", "embed")


def job_for(checkpoint: Path, **options: object) -> dict[str, Any]:
    shape = {"labels": list(LABELS), "max_length": MAX_LENGTH, "threads": None, "settings": {}}
    return {"model": str(checkpoint), "backend": "", "options": options, "task": "classify", **shape}


@pytest.mark.parametrize("options", [{"dtype": "fp32"}, {"pipeline": True, "batch_size": 2}], ids=["model", "pipeline"])
@pytest.mark.parametrize("requests", [TEXTS, PAIRS], ids=["texts", "pairs"])
def test_the_peer_of_transformers(options: dict[str, Any], requests: list[dict[str, str]], classifier: Path) -> None:
    peer = import_file(PEERS / "transformers" / "peer.py")
    candidate = peer.load(job_for(classifier, **options))
    found = candidate.answer(requests, Watch(lambda: 0.0), in_order=False, batch_size=2)
    assert abs(scores(found) - transformers_scores(classifier, requests)).max() < FP32_TOLERANCE
    assert candidate.facts["precision"] == "fp32"


class FakeEncoder:
    """CTranslate2's encoder as far as the peer sees it; `pooled` is made of the rows and their token types."""

    compute_type = "int8_float32"

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def forward_batch(self, ids: list[list[int]], *, token_type_ids: list[list[int]]) -> SimpleNamespace:
        assert [len(row) for row in ids] == [len(row) for row in token_type_ids]
        rows = [[len(row), sum(types)] + [0] * 30 for row, types in zip(ids, token_type_ids, strict=True)]
        return SimpleNamespace(pooler_output=np.array(rows, np.float32))


def test_ctranslate2_gets_real_lengths_and_token_types(classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("ctranslate2")
    converted: list[str] = []
    convert = SimpleNamespace(convert=lambda folder, quantization, force: converted.append(quantization))
    module.converters = SimpleNamespace(TransformersConverter=lambda model: convert)
    module.Encoder = FakeEncoder
    monkeypatch.setitem(sys.modules, "ctranslate2", module)
    peer = import_file(PEERS / "ctranslate2" / "peer.py")
    monkeypatch.setattr(peer, "versions", lambda *packages: dict.fromkeys(packages, "0"))
    candidate = peer.load(job_for(classifier, compute_type="int8"))
    requests = [PAIRS[1], {"text": "The river", "pair": "a garden"}]
    found = candidate.answer(requests, Watch(lambda: 0.0), in_order=True, batch_size=8)
    weights = read_tensors(classifier / "model.safetensors")
    second = [len(candidate.tokenizer(request["pair"])["input_ids"]) - 1 for request in requests]
    pooled = np.array(
        [[*candidate.lengths([request])[0], count] for request, count in zip(requests, second, strict=True)]
    )
    logits = pooled @ weights["classifier.weight"][:, :2].numpy().T + weights["classifier.bias"].numpy()
    assert scores(found) == pytest.approx(scores(shared.decode(logits, LABELS)), abs=1e-6)
    assert converted == ["int8"]
    assert candidate.facts["precision"] == "int8"


@pytest.fixture
def sentence_transformers(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[list[Any]]]:
    """The peer on a fake library, and the texts or pairs of each of its calls."""
    calls: list[list[Any]] = []

    class CrossEncoder:
        def __init__(self, *_: Any, max_length: int, **__: Any) -> None:
            assert max_length == MAX_LENGTH

        def predict(self, pairs: list[tuple[str, str]], **options: Any) -> np.ndarray:
            assert options["apply_softmax"]
            calls.append(pairs)
            return np.array([[len(a) / 100, len(b) / 100, 0.0] for a, b in pairs])

    class SentenceTransformer:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def encode(self, texts: list[str], **_: Any) -> np.ndarray:
            calls.append(texts)
            return np.array([[len(text), 0.0] for text in texts])

    module: Any = ModuleType("sentence_transformers")
    module.CrossEncoder, module.SentenceTransformer = CrossEncoder, SentenceTransformer
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)
    peer = import_file(PEERS / "sentence_transformers" / "peer.py")
    monkeypatch.setattr(peer, "versions", lambda *packages: dict.fromkeys(packages, "0"))
    return peer, calls


@pytest.mark.parametrize(("in_order", "sizes"), [(True, [3, 3, 1]), (False, [7])])
def test_a_cross_encoder_sorts_unless_the_order_is_given(
    sentence_transformers: tuple[Any, list[list[Any]]], in_order: bool, sizes: list[int]
) -> None:
    peer, calls = sentence_transformers
    candidate = peer.load(job_for(Path("model"), dtype="fp32"))
    found = candidate.answer(PAIRS, Watch(lambda: 0.0), in_order=in_order, batch_size=3)
    assert [len(call) for call in calls] == sizes
    assert Counter(pair for call in calls for pair in call) == Counter((r["text"], r["pair"]) for r in PAIRS)
    assert scores(found)[:, 0].tolist() == [len(request["text"]) / 100 for request in PAIRS]
    with pytest.raises(ValueError, match="takes pairs"):
        candidate.answer(TEXTS, Watch(lambda: 0.0), in_order=in_order, batch_size=3)


def test_vectors_of_texts_and_of_pairs(sentence_transformers: tuple[Any, list[list[Any]]]) -> None:
    peer, calls = sentence_transformers
    candidate = peer.load(job_for(Path("model"), dtype="fp32") | {"task": "embed", "labels": []})
    single, pair = candidate.answer(
        [{"text": "a"}, {"text": "bb", "pair": "ccc"}], Watch(lambda: 0.0), in_order=False, batch_size=3
    )
    assert calls == [["a", "bb", "ccc"]]
    assert single.keys() == {"embedding"}
    assert (single["embedding"][0], pair["embedding"][0], pair["pair_embedding"][0]) == (1, 2, 3)
    assert pair["score"] == pytest.approx(1)

"""The command line is a contract: verbs, exit statuses, and what goes to which stream."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bertfast import doctor
from bertfast.cli import app
from bertfast.config import ModelConfig
from bertfast.text.corpus import Corpus
from bertfast.text.tokenizer import Tokenizer
from tests.conftest import Golden, write_checkpoint

ENVIRONMENT = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}


def bertfast(*arguments: object, stdin: str = "", cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bertfast", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, input=stdin, env=ENVIRONMENT, cwd=cwd, timeout=300)


VERBS = [
    (),
    ("corpus", "build"),
    ("corpus", "instances"),
    ("corpus", "verify"),
    ("train", "pretrain"),
    ("train", "classify"),
    ("train", "qa"),
    ("train", "tag"),
    ("export",),
    ("adopt",),
    ("build",),
    ("bench",),
    ("predict",),
    ("doctor",),
    ("quickstart",),
]


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_help_needs_no_extra(verb: tuple[str, ...]) -> None:
    blocked = "import sys; [sys.modules.__setitem__(n, None) for n in " + repr(
        ["torch", "onnx", "onnxruntime", "openvino", "sklearn", "matplotlib", "pyarrow", "safetensors", "tensorrt_rtx"]
    )
    code = f"{blocked}]; sys.argv = ['bertfast', *{list(verb)!r}, '--help']; from bertfast.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert "Usage: bertfast" in done.stdout


def test_the_whole_way_by_verbs(documents: list[str], row_files: tuple[Path, Path], tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(documents))
    small = ["--set=max_steps=3", "--set=max_length=32", "--set=compile=false", "--set=heldout_fraction=0.1"]
    shape = ["hidden_size=32", "num_hidden_layers=1", "num_attention_heads=2", "intermediate_size=32"]
    steps = [
        ("corpus", "build", text, "--vocab-size", 200, "--out", "corpus"),
        (
            "train",
            "pretrain",
            "--corpus",
            "corpus",
            "--out",
            "base",
            "--config=tiny",
            *small,
            *(f"--set=model.{item}" for item in shape),
        ),
        (
            "train",
            "classify",
            "--model",
            "base",
            "--train",
            row_files[0],
            "--dev",
            row_files[1],
            "--out",
            "tuned",
            "--set=max_steps=3",
            "--set=max_length=32",
        ),
        ("export", "tuned", "--out", "onnx"),
        ("bench", "tuned", "onnx", "--data", row_files[1], "--out", "report", "--repeats", 1, "--limit", 10, "--json"),
    ]
    for step in steps:
        done = bertfast(*step, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        printed = json.loads(done.stdout)
    assert printed["rows"] == 10
    requests = '{"id": 7, "text": "The river."}\n\n{"text": "a", "pair": "b"}\n'
    done = bertfast("predict", "onnx", stdin=requests, cwd=tmp_path)
    first, second = map(json.loads, done.stdout.splitlines())
    assert first["id"] == 7
    assert set(first) == {"id", "label", "score", "scores"}
    assert set(second) == {"label", "score", "scores"}


def test_the_gate_and_a_comparison_end_with_status_3_for_a_no(
    exported: Path, row_files: tuple[Path, Path], tmp_path: Path
) -> None:
    command = ("bench", exported, "--backend", "onnxruntime", "--data", row_files[1], "--repeats", 1, "--limit", 4)
    shapes = ("--batch-sizes", "1,2", "--lengths", "8", "--scenario", "offline", "--scenario", "single-stream")
    for limit, status in ((60_000, 0), (0.001, 3)):
        done = bertfast(*command, *shapes, "--out", f"report-{status}", "--max-p99-ms", limit, cwd=tmp_path)
        assert done.returncode == status, done.stderr
        assert ("Do not ship." in done.stdout) == (status == 3)
        assert "report.html" in done.stdout
    report = tmp_path / "report-0" / "report.json"
    done = bertfast("bench", "--compare", report, report)
    assert (done.returncode, "Nothing regressed." in done.stdout) == (0, True), done.stderr
    slower = json.loads(report.read_text())
    assert [(cell["batch_size"], cell["length"]) for cell in slower["candidates"][0]["grid"]] == [(1, 8), (2, 8)]
    for run in slower["candidates"][0]["offline"]:
        run["elapsed_s"] *= 2
    (tmp_path / "slower.json").write_text(json.dumps(slower))
    done = bertfast("bench", "--compare", report, tmp_path / "slower.json", "--json")
    assert done.returncode == 3, done.stderr
    assert "regressed" in {change["verdict"] for change in json.loads(done.stdout)["changes"]}


def test_a_tagger_by_verbs(pretrained: Path, tmp_path: Path) -> None:
    (tmp_path / "words.conll").write_text("Ann B-person\nwaits O\n\nBo B-person\nLee I-person\nwaits O\n")
    data = ("--train", "words.conll", "--dev", "words.conll", "--text-column", 1, "--label-column", 2)
    small = ("--set=max_steps=2", "--set=max_length=32", "--set=compile=false")
    done = bertfast("train", "tag", "--model", pretrained, *data, "--out", "tuned", *small, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {"dev_precision", "dev_recall", "dev_f1", "dev_token_accuracy"} <= set(json.loads(done.stdout))
    requests = '{"id": 7, "tokens": ["Bo", "Lee", "waits"]}\n{"text": "Ann waits."}\n{"text": "a", "pair": "b"}\n'
    done = bertfast("predict", "tuned", stdin=requests, cwd=tmp_path)
    first, second = map(json.loads, done.stdout.splitlines())
    assert (first["id"], set(second)) == (7, {"entities"})
    assert done.returncode == 2
    assert "standard input:3: a request needs either 'text' or 'tokens'; this one has text, pair" in done.stderr


def test_a_corpus_is_the_same_for_any_workers_and_can_be_verified(documents: list[str], tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("\n\n".join(documents))
    build = ("corpus", "build", "text.txt", "--vocab-size", 200)
    for workers in (1, 2):
        done = bertfast(*build, "--workers", workers, "--out", f"c{workers}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "MB/s" in done.stderr
        keys = {"corpus", "vocab_size", "documents", "sentences", "tokens", "duplicate_sentence_share"}
        assert set(json.loads(done.stdout)) == keys
    verified = [json.loads(bertfast("corpus", "verify", f"c{n}", cwd=tmp_path).stdout) for n in (1, 2)]
    assert verified[0]["sha256"] == verified[1]["sha256"]
    (tmp_path / "c1" / "vocab.txt").write_bytes((tmp_path / "c1" / "vocab.txt").read_bytes()[::-1])
    done = bertfast("corpus", "verify", "c1", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "SHA-256 differs" in done.stderr


def test_prediction_to_a_file_is_whole_or_not_there(exported: Path, tmp_path: Path) -> None:
    """What comes before a bad line is kept under another name."""
    command = ("predict", exported, "--input", "in.jsonl", "--output", "out.jsonl")
    (tmp_path / "in.jsonl").write_text('{"text": 3}\n')
    done = bertfast(*command, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "in.jsonl:1: 'text' is int" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
    (tmp_path / "in.jsonl").write_text('{"id": 5, "text": "a"}\n{"text": 3}\n')
    done = bertfast(*command, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "in.jsonl:2: 'text' is int" in done.stderr
    assert "The answers to what comes before it are in out.jsonl.partial." in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", "out.jsonl.partial"}
    assert json.loads((tmp_path / "out.jsonl.partial").read_text())["id"] == 5
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n')
    assert bertfast(*command, cwd=tmp_path).returncode == 0
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", "out.jsonl"}
    assert json.loads((tmp_path / "out.jsonl").read_text())["label"]


def test_the_reference_s_instances_are_written(golden: Golden, minilm: Path, tmp_path: Path) -> None:
    settings = golden.settings
    names = ("max_seq_length", "max_predictions_per_seq", "masked_lm_prob", "dupe_factor", "short_seq_prob")
    done = bertfast(
        *("corpus", "instances", golden.text, "--vocab", minilm / "vocab.txt", "--out", tmp_path / "out.jsonl"),
        *("--mode", "google", "--seed", settings["random_seed"]),
        *(f"--{name.replace('_', '-')}={settings[name]}" for name in names),
        *(["--whole-word-mask"] if settings["whole_word_mask"] else []),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["instances"] == len(golden.lines)
    assert (tmp_path / "out.jsonl").read_text(encoding="utf-8") == "".join(line + "\n" for line in golden.lines)


def test_instances_that_cannot_be_made_leave_no_file(minilm: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("One.\nTwo.\n\nThree.\n")
    (tmp_path / "blank.txt").write_text("\n \n\n")
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\none\n")
    (tmp_path / "empty.txt").touch()
    inputs = {path.name for path in tmp_path.iterdir()}
    vocab = ("--vocab", minilm / "vocab.txt")
    cases = [
        (("text.txt", *vocab, "--mode", "goggle"), "--mode goggle is not one of google. Did you mean 'google'?"),
        (("text.txt", *vocab, "--max-seq-length", 4), "max_seq_length = 4: Input should be greater than or equal to 5"),
        (("text.txt", *vocab, "--short-seq-prob", 1.5), "short_seq_prob = 1.5"),
        (("text.txt", "--vocab", "vocab.txt"), "vocab.txt: the vocabulary lacks [MASK]"),
        (("text.txt", "--vocab", "vocabulary.txt"), "vocabulary.txt does not exist. Did you mean 'vocab.txt'?"),
        (("text.txt", "missing.txt", *vocab), "missing.txt does not exist"),
        (("empty.txt", *vocab), "empty.txt is empty"),
        (("blank.txt", *vocab), "blank.txt: no text"),
    ]
    for arguments, message in cases:
        done = bertfast("corpus", "instances", *arguments, "--out", "out.jsonl", cwd=tmp_path)
        assert done.returncode == 2, (arguments, done.stderr)
        assert message in done.stderr, (arguments, done.stderr)
        assert "Traceback" not in done.stderr
        assert {path.name for path in tmp_path.iterdir()} == inputs


def test_bad_input_ends_with_status_2_and_no_traceback(
    exported: Path, classifier: Path, row_files: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "latin1.txt").write_bytes("caf\u00e9".encode("latin-1"))
    (tmp_path / "nomask.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n")
    (tmp_path / "bytes.tsv").write_bytes(b"text\tlabel\ncaf\x81\t1\nbar\t0\n")
    train, dev = row_files
    classify = ("train", "classify", "--model", classifier, "--dev", dev, "--out", "out", "--set", "max_length=32")
    cases = [
        (("corpus", "build", "missing.txt", "--vocab-size", 200, "--out", "out"), "missing.txt does not exist"),
        (("corpus", "build", "latin1.txt", "--vocab-size", 200, "--out", "out"), "not UTF-8"),
        (("corpus", "build", "latin1.txt", "--out", "out"), "either --tokenizer"),
        (("corpus", "build", "latin1.txt", "--tokenizer", "nomask.txt", "--out", "out", "--cased"), "--cased is of a"),
        (("corpus", "build", ".", "--vocab-size", 200, "--out", "out"), "--out out lies in the input ."),
        (
            ("corpus", "build", "latin1.txt", "--vocab-size", 200, "--out", "out", "--documents", "fil"),
            "Did you mean 'file'",
        ),
        (("corpus", "build", "latin1.txt", "--tokenizer", "nomask.txt", "--out", "out"), "lacks [MASK]"),
        (
            ("corpus", "build", "latin1.txt", "--vocab-size", 200, "--out", "out", "--engine", "rey"),
            "Did you mean 'ray'",
        ),
        ((*classify, "--train", "bytes.tsv"), "bytes.tsv:2 is neither UTF-8 nor Windows-1252"),
        ((*classify, "--train", train, "--text-column", "txt"), "Did you mean 'text'"),
        ((*classify, "--train", train, "--set", "learning_rat=1"), "Did you mean 'learning_rate'"),
        ((*classify, "--train", train, "--config", "none.toml"), "none.toml does not exist"),
        (("train", "pretrain", "--corpus", exported, "--out", "out"), "of kind 'onnx', and 'corpus' is needed"),
        (("export", "nowhere", "--out", "out"), "nowhere does not exist"),
        (("export", classifier, "--out", "out", "--precision", "int9"), "--precision int9 is not one of fp32"),
        (("bench", exported, "--data", dev, "--out", "out", "--backend", "openvin"), "Did you mean 'openvino'"),
        (("bench", exported, "--data", dev), "give what to measure: bertfast bench ARTEFACT... --data FILE --out DIR"),
        (("bench", exported, "--compare", "a", "b"), "Leave out ARTEFACT"),
        (("bench", "--compare", "a", "b", "--max-drop", "1"), "nor judges by limits"),
        (("bench", "--compare", "a.json", "b.json"), "a.json does not exist"),
        (("bench", exported, "--data", dev, "--out", "out", "--lengths", "8"), "Give both --batch-sizes and --lengths"),
        (
            ("bench", exported, "--data", dev, "--out", "out", "--lengths", "8,x", "--batch-sizes", "1"),
            "--lengths 8,x is not a list of positive whole numbers",
        ),
        (("predict", exported, "--backend", "torch"), "torch runs artefacts of kind 'checkpoint'"),
        (("predict", tmp_path), "no manifest.json"),
        (("train", "pretrain", "--corpus", exported, "--out", "out", "--set", "model=base"), "[model] is a table"),
        (("train", "pretrain", "--corpus", exported, "--out", "out", "--config", "base-512"), "first one as --model"),
        ((*classify, "--train", train, "--config", "/"), "cannot be read"),
    ]
    for arguments, message in cases:
        done = bertfast(*arguments, stdin='{"text": "a"}\n', cwd=tmp_path)
        assert done.returncode == 2, (arguments, done.stderr)
        assert message in done.stderr, (arguments, done.stderr)
        assert "Traceback" not in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"latin1.txt", "bytes.tsv", "nomask.txt"}


@pytest.mark.parametrize("line", [b'{"text": "\\ud83d"}', b'{"text": "caf\xe9"}', b'{"id": "\\ud83d", "text": "a"}'])
def test_a_request_that_is_no_text_names_its_line(exported: Path, line: bytes) -> None:
    command = [sys.executable, "-m", "bertfast", "predict", str(exported)]
    done = subprocess.run(command, input=b'{"text": "a"}\n' + line + b"\n", capture_output=True, env=ENVIRONMENT)
    assert done.returncode == 2
    assert b"standard input:2" in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_request_that_is_not_json_names_its_line(exported: Path) -> None:
    done = bertfast("predict", exported, stdin='{"text": "a"}\n{"text":\n')
    assert done.returncode == 2
    assert "standard input:2 is not JSON" in done.stderr


@pytest.mark.skipif(
    os.geteuid() == 0 and not Path("/proc/sys").exists(), reason="needs a folder that root cannot write"
)
def test_a_place_that_cannot_be_written_is_named(classifier: Path) -> None:
    done = bertfast("export", classifier, "--out", "/proc/sys/kernel/onnx")
    assert done.returncode == 2
    assert "/proc/sys/kernel/onnx" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "Free space or choose a place that can be written."),
        (errno.EROFS, "Free space or choose a place that can be written."),
        (errno.EACCES, "Check the path, its permissions and its disk."),
        (errno.EIO, "Check the path, its permissions and its disk."),
    ],
)
def test_the_remedy_is_that_of_the_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int, remedy: str
) -> None:
    def examine() -> None:
        raise OSError(number, os.strerror(number), "a.txt")

    monkeypatch.setattr(doctor, "examine", examine)
    with pytest.raises(SystemExit, match="2"):
        app(["doctor"])
    assert capsys.readouterr().err == f"a.txt: {os.strerror(number)}. {remedy}\n"


def test_a_graph_of_others_is_adopted(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "theirs", ignore=shutil.ignore_patterns("manifest.json"))
    done = bertfast("adopt", tmp_path / "theirs", "--out", tmp_path / "onnx")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["onnx"], said["precision"]) == (str(tmp_path / "onnx"), "fp32")
    assert max(said["largest_relative_error"].values()) < 1e-4
    refused = bertfast("adopt", tmp_path / "onnx", "--out", tmp_path / "again")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "is an artefact of bertfast already" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_full_disk_ends_with_status_2_and_nothing_half_written(
    classifier: Path, documents: list[str], row_files: tuple[Path, Path], minilm: Path, tmp_path: Path
) -> None:
    """A limit on the size of files stands in for a full disk: the write fails in the same place."""
    (tmp_path / "text.txt").write_text("\n\n".join(documents))
    train = ("train", "classify", "--model", str(classifier), "--train", str(row_files[0]), "--dev", str(row_files[1]))
    verbs = [
        ("export", str(classifier), "--out", "out"),
        ("corpus", "build", "text.txt", "--vocab-size", "200", "--out", "out"),
        ("corpus", "instances", "text.txt", "--vocab", str(minilm / "vocab.txt"), "--out", "out"),
        (*train, "--out", "out", "--set", "max_length=32", "--set", "max_steps=1"),
    ]
    for verb in verbs:
        code = (
            "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000));"
            f"sys.argv = ['bertfast', *{verb!r}];"
            "from bertfast.cli import main; main()"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=ENVIRONMENT
        )
        assert done.returncode == 2, (verb, done.stderr)
        assert "Traceback" not in done.stderr
        assert {path.name for path in tmp_path.iterdir()} <= {"text.txt", "out.run", "out.build"}


def test_ctrl_c_says_what_to_do(pretrained: Path, row_files: tuple[Path, Path], tmp_path: Path) -> None:
    files = ["--train", str(row_files[0]), "--dev", str(row_files[1])]
    command = [sys.executable, "-m", "bertfast", "train", "classify", "--model", str(pretrained), *files]
    settings = [
        "--set=max_length=32",
        "--set=max_steps=100000",
        "--set=checkpoint_every_steps=5",
        "--set=compile=false",
    ]
    process = subprocess.Popen(
        [*command, "--out", "m", *settings], cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    deadline = time.monotonic() + 60
    while not list((tmp_path / "m.run").glob("state-*[0-9]")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    message = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "goes on with --resume" in message
    assert "Traceback" not in message


def test_a_reader_that_stops_is_no_error(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n' * 3000)
    predict = f"{sys.executable} -m bertfast predict {exported} --input in.jsonl"
    script = f"set -o pipefail; {predict} | head -1"
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, env=ENVIRONMENT)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 1


def test_doctor_names_what_is_there_and_what_to_install() -> None:
    found = json.loads(bertfast("doctor", "--json").stdout)
    assert {item["name"] for item in found["backends"]} == {
        "torch",
        "torch-packed",
        "onnxruntime",
        "openvino",
        "onnxruntime-cuda",
        "onnxruntime-tensorrt",
        "tensorrt",
        "tensorrt-rtx",
    }
    for item in (*found["backends"], *found["packages"], *found["tools"]):
        assert bool(item["version"]) != bool(item["remedy"])
    said = bertfast("doctor").stdout
    assert "backends" in said
    assert "bertfast[gpu]" in said


def test_references_to_the_hub_are_resolved(corpus: Corpus, tmp_path: Path) -> None:
    model = "hub:owner/name@"
    verbs = [
        ("export", model, "--out", tmp_path / "onnx"),
        ("predict", model),
        ("bench", model, "--data", tmp_path, "--out", tmp_path / "report"),
        ("train", "pretrain", "--model", model, "--corpus", corpus.path, "--out", tmp_path / "base"),
    ]
    for verb in verbs:
        done = bertfast(*verb)
        assert done.returncode == 2
        assert "hub:owner/name@ is not of the form hub:OWNER/NAME[@REVISION]" in done.stderr, verb
    bench = bertfast("bench", tmp_path, "--data", "hub:owner/name:", "--out", tmp_path / "report")
    assert bench.returncode == 2
    assert "hub:owner/name: is not of the form hub:OWNER/NAME[/CONFIG][:SPLIT]" in bench.stderr


def test_predict_reads_what_its_task_reads(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.tsv").write_text("split\tbody\tlabel\ntrain\tThe river.\ttool\ndev\tA bridge.\tsea\n")
    (tmp_path / "rows.jsonl").write_text('{"body": "A bridge.", "label": "sea"}\n')
    column = ("--text-column", "body")
    answers = [
        bertfast("predict", exported, stdin='{"text": "A bridge."}\n'),
        bertfast("predict", exported, "--input", "rows.tsv:dev", *column, cwd=tmp_path),
        bertfast("predict", exported, "--input", "rows.jsonl", *column, cwd=tmp_path),
    ]
    assert [done.stderr for done in answers] == ["", "", ""]
    assert len({done.stdout for done in answers}) == 1
    refused = bertfast("predict", exported, *column, stdin='{"text": "A bridge."}\n')
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "--text-column is of a file, and standard input has requests" in refused.stderr
    missing = bertfast("predict", exported, "--input", "hub:owner/name:", cwd=tmp_path)
    assert "hub:owner/name: is not of the form hub:OWNER/NAME[/CONFIG][:SPLIT]" in missing.stderr


def test_vectors_are_printed_as_lists(encoder: Path) -> None:
    done = bertfast("predict", encoder, stdin='{"text": "a"}\n{"text": "a", "pair": "The river."}\n')
    text, pair = map(json.loads, done.stdout.splitlines())
    assert text["embedding"] == pytest.approx(pair["embedding"], abs=1e-6)
    assert len(pair["pair_embedding"]) == 32


def test_settings_of_the_task_can_be_others_than_in_training(
    tiny_config: ModelConfig, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    write_checkpoint(tmp_path / "finder", "qa", tiny_config, tokenizer, ())
    question = '{"id": 1, "question": "' + "river " * 40 + '", "context": "The river waits."}\n'
    plain = bertfast("predict", "finder", stdin=question, cwd=tmp_path)
    (answer,) = map(json.loads, plain.stdout.splitlines())
    assert set(answer) == {"id", "answer", "start", "end", "score", "truncated"}
    assert "Inputs that were cut: 1. Texts go to the model's 64 tokens, questions to task." in plain.stderr
    never = ("--set=task.no_answer=true", "--set=task.null_threshold=-1e9")
    assert json.loads(bertfast("predict", "finder", *never, stdin=question, cwd=tmp_path).stdout)["answer"] == ""
    done = bertfast("export", "finder", "--out", "onnx", *never, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    listed = bertfast("predict", "onnx", "--set=task.return_n_best=true", stdin=question, cwd=tmp_path)
    assert json.loads(listed.stdout)["answer"] == ""
    assert json.loads(listed.stdout)["n_best"]
    for setting, message in (("seed=1", "Write --set task.KEY=VALUE"), ("task.stride=1", "Did you mean 'doc_stride'")):
        done = bertfast("predict", "finder", "--set", setting, stdin=question, cwd=tmp_path)
        assert done.returncode == 2
        assert message in done.stderr
    twice = bertfast("predict", "finder", "--squad", stdin=question * 2, cwd=tmp_path)
    assert (twice.returncode, twice.stdout) == (2, "")
    assert "two questions have the id '1'. Give each question its own id." in twice.stderr


def test_the_version_is_the_package_s() -> None:
    from bertfast.artifact import version

    assert bertfast("--version").stdout.strip() == version()


def test_settings_come_from_a_file_too(pretrained: Path, row_files: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("max_steps = 2\nmax_length = 32\nseed = 5\n")
    done = bertfast(
        *("train", "classify", "--model", pretrained, "--train", row_files[0], "--dev", row_files[1], "--out", "m"),
        *("--config", "run.toml", "--set", "seed=6"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    settings = json.loads((tmp_path / "m" / "manifest.json").read_text())["settings"]
    assert (settings["max_steps"], settings["seed"], settings["global_batch_size"]) == (2, 6, 32)


def test_questions_come_as_a_squad_file_and_answers_go_as_its_evaluation_reads_them(
    pretrained: Path, tmp_path: Path
) -> None:
    qas = [
        {"id": f"q{n}", "question": "What waits?", "answers": [{"text": "river", "answer_start": 4}]} for n in (1, 2)
    ]
    squad = {"data": [{"paragraphs": [{"context": "The river waits.", "qas": qas}]}]}
    (tmp_path / "dev.json").write_text(json.dumps(squad))
    files = ["--train", "dev.json", "--dev", "dev.json", "--out", "finder"]
    small = ["--set=max_steps=1", "--set=max_length=32", "--set=compile=false", "--set=task.max_answer_length=2"]
    done = bertfast("train", "qa", "--model", pretrained, *files, *small, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {"dev_exact_match", "dev_f1"} <= set(json.loads(done.stdout))
    done = bertfast("predict", "finder", "--input", "dev.json", cwd=tmp_path)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["id"] for line in lines] == ["q1", "q2"]
    assert all("The river waits."[line["start"] : line["end"]] == line["answer"] != "" for line in lines)
    done = bertfast("predict", "finder", "--input", "dev.json", "--squad", "--output", "said.json", cwd=tmp_path)
    assert json.loads((tmp_path / "said.json").read_text()) == {line["id"]: line["answer"] for line in lines}
    done = bertfast("predict", "finder", "--squad", stdin='{"question": "a", "context": "b"}', cwd=tmp_path)
    assert done.returncode == 2
    assert "name each question by its 'id'" in done.stderr


def test_several_seeds_are_resumed_where_they_stand(
    pretrained: Path, row_files: tuple[Path, Path], tmp_path: Path
) -> None:
    """A finished seed is not run again; a student has its teacher by name."""
    command = ["train", "classify", "--model", pretrained, "--train", row_files[0], "--dev", row_files[1]]
    command += ["--set=max_steps=2", "--set=max_length=32", "--set=threads=1", "--out", tmp_path / "out"]
    assert bertfast(*command, "--seeds", "1").returncode == 0
    first = (tmp_path / "out" / "seed-0" / "manifest.json").read_bytes()
    done = bertfast(*command, "--seeds", "0,1", "--resume")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary == json.loads((tmp_path / "out" / "seeds.json").read_text())
    assert set(summary["results"]) == {"0", "1"}
    assert summary["metric"] == "dev_accuracy"
    assert (tmp_path / "out" / "seed-0" / "manifest.json").read_bytes() == first
    again = bertfast(*command, "--seeds", "2")
    assert again.returncode == 2
    assert "is already there" in again.stderr
    both = bertfast(*command, "--seeds", "0,1", "--set=seed=3")
    assert both.returncode == 2
    assert "and so does seed=3" in both.stderr
    alone = bertfast(*command[:-1], tmp_path / "student", "--set=distill_weight=0.5")
    assert alone.returncode == 2
    assert "distill_weight = 0.5 is about a teacher, and there is none" in alone.stderr
    refused = bertfast(*command[:-1], tmp_path / "student", "--teacher", pretrained)
    assert refused.returncode == 2
    assert "answers 'pretrain', and the student is to learn 'classify'" in refused.stderr


def test_an_engine_is_built_verified_inspected_and_rebuilt_by_its_verb(exported: Path, tmp_path: Path) -> None:
    out = tmp_path / "engine"
    built = bertfast("build", exported, "--recipe", "rtx-ahead-of-time", "--target", "SM89", "--out", out)
    assert built.returncode == 0, built.stderr
    found = json.loads(built.stdout)
    assert list(found["plans"]) == ["SM89"]
    verified = bertfast("build", out, "--verify")
    assert (verified.returncode, json.loads(verified.stdout)) == (0, {"verified": True} | found)
    inspected = json.loads(bertfast("build", out, "--inspect").stdout)
    assert (inspected["engine"]["library"], inspected["graph"]["attentions"]) == ("tensorrt-rtx", 2)
    data = (out / "SM89.plan").read_bytes()
    (out / "SM89.plan").write_bytes(bytes([data[0] ^ 1]) + data[1:])
    refused = bertfast("build", out, "--verify")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert f"bertfast build {out} --rebuild" in refused.stderr
    assert "Traceback" not in refused.stderr
    again = bertfast("build", out, "--rebuild")
    assert again.returncode == 0, again.stderr
    assert bertfast("build", out, "--verify").returncode == 0


def test_profiles_are_planned_from_texts_and_kept_for_a_rebuild(
    exported: Path, row_files: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "engine"
    planned = ["--plan-from", row_files[1], "--buckets", "2", "--set", 'targets=["SM89"]']
    built = bertfast("build", exported, "--recipe", "rtx-ahead-of-time", "--out", out, *planned)
    assert built.returncode == 0, built.stderr
    first, *others = json.loads(built.stdout)["profiles"]
    assert len(others) == 2
    assert len(set(first.split(" x ")[1].split(".."))) == 1  # a bucket has one length
    assert others[-1].endswith("..64")  # and what is longer has a profile up to the model's limit
    assert "padding among the computed tokens: one profile" in built.stderr
    shapes = json.loads(bertfast("build", out, "--inspect").stdout)["engine"]["shapes"]
    assert sum(bucket["sequences"] for bucket in shapes["buckets"]) == len(row_files[1].read_text().splitlines())
    assert shapes["padded"]["buckets"] < shapes["padded"]["one_profile"]
    again = bertfast("build", out, "--rebuild", "--target", "SM120", "--out", tmp_path / "again")
    assert json.loads(again.stdout)["profiles"] == [first, *others]
    assert list(json.loads(again.stdout)["plans"]) == ["SM120"]
    assert json.loads((tmp_path / "again" / "manifest.json").read_text())["settings"]["engine"]["shapes"] == shapes
    other = bertfast("build", out, "--recipe", "rtx-ahead-of-time", "--target", "SM89", "--out", tmp_path / "other")
    assert other.returncode == 0, other.stderr
    manifest = json.loads((tmp_path / "other" / "manifest.json").read_text())
    assert manifest["settings"]["engine"]["shapes"] is None  # its profiles are the recipe's


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "build wants --recipe: a TOML file or one of datacenter-fp16, "),
        (("--recipe", "ltency", "--out", "x"), "ltency does not exist. Did you mean 'latency'?"),
        (("--recipe", "latency"), "build writes a directory: give --out DIR."),
        (("--recipe", "latency", "--out", "x", "--target", "SM89"), "are of TensorRT for RTX"),
        (("--recipe", "latency", "--out", "x"), "tensorrt cannot be imported"),
        (("--rebuild",), "--rebuild takes an engine, and "),
        (("--rebuild", "--recipe", "latency"), "--rebuild takes the recipe inside the engine."),
        (("--verify", "--inspect"), "--verify, --inspect and --rebuild are three different things to do."),
        (("--verify",), "is an artefact of kind 'onnx', and 'engine' is needed here."),
        (("--inspect",), "is an artefact of kind 'onnx', and 'engine' is needed here."),
    ],
)
def test_a_build_that_cannot_be_says_what_is_missing(
    exported: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = bertfast("build", exported, *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in " ".join(done.stderr.split())
    assert not list(tmp_path.iterdir())

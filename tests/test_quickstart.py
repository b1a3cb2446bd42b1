from __future__ import annotations

import json
from pathlib import Path

import pytest

from bertfast import quickstart
from bertfast.artifact import open_manifest
from bertfast.errors import DataError
from bertfast.quickstart import Module, is_heldout, without_name, write_data


def lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def modules(packages: tuple[str, ...]) -> list[Module]:
    return [
        Module(
            package,
            f"m{n}.py",
            tuple(f"Use {package.upper()} {n} to do thing {k} of many, well and fast." for k in range(5)),
        )
        for package in packages
        for n in range(120)
    ]


def test_a_module_is_on_one_side_only_and_its_package_s_name_on_neither(tmp_path: Path) -> None:
    made = modules(("torch", "numpy"))
    rows = write_data(made, tmp_path)
    train, dev = lines(tmp_path / "train.jsonl"), lines(tmp_path / "dev.jsonl")
    assert (len(train), len(dev), rows["labels"]) == (rows["train"], rows["dev"], 2)
    heldout = {
        without_name(text, module.package) for module in made if is_heldout(module) for text in module.docstrings
    }
    assert heldout
    assert all(row["text"] in heldout for row in dev)
    assert not {row["text"] for row in train} & {row["text"] for row in dev}
    assert not any(name in row["text"].lower() for row in train + dev for name in ("torch", "numpy"))
    pretraining = "".join(row["text"] for row in lines(tmp_path / "documents.jsonl"))
    assert not any(text in pretraining for module in made if is_heldout(module) for text in module.docstrings)


def test_one_package_is_too_few(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"only 1 installed package.*pip install"):
        write_data(modules(("torch",)), tmp_path)


def test_the_whole_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(quickstart, "MAX_PACKAGES", 2)
    monkeypatch.setattr(quickstart, "MAX_MODULES", 60)
    monkeypatch.setattr(quickstart, "VOCAB_SIZE", 1000)
    monkeypatch.setattr(quickstart, "MODEL", quickstart.MODEL | {"hidden_size": 32, "num_hidden_layers": 1})
    few = {"max_steps": 3, "global_batch_size": 8}
    monkeypatch.setattr(quickstart, "PRETRAIN", quickstart.PRETRAIN.model_copy(update=few))
    monkeypatch.setattr(quickstart, "FINETUNE", quickstart.FINETUNE.model_copy(update=few))
    quickstart.run(tmp_path / "out")
    printed = capsys.readouterr().out
    for words in (
        "held-out MLM loss",
        "unigram entropy",
        "held-out NSP accuracy",
        "without pretraining",
        "onnxruntime",
    ):
        assert words in printed
    assert (tmp_path / "out" / "report" / "report.html").is_file()
    parents = [open_manifest(tmp_path / "out" / name).parents for name in ("pretrained", "classifier", "onnx")]
    hashes = [open_manifest(tmp_path / "out" / name).sha256 for name in ("corpus", "pretrained", "classifier")]
    assert parents == [{"corpus": hashes[0]}, {"start": hashes[1]}, {"checkpoint": hashes[2]}]

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bertfast.backends import open_served
from bertfast.bench.candidates import our_candidates, peer_candidates
from bertfast.errors import ConfigError


@pytest.fixture
def peer(tmp_path: Path) -> Path:
    folder = tmp_path / "optimum"
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "python").touch()
    (folder / "peer.py").touch()
    (folder / "variants.toml").write_text('[fp32]\n[int8]\nquantize = "avx512_vnni"\n')
    return folder


def test_a_peer_takes_part_with_all_its_variants_or_with_one(peer: Path, classifier: Path, exported: Path) -> None:
    models = [open_served(exported), open_served(classifier)]
    both = peer_candidates([str(peer)], models)
    assert [item.name for item in both] == ["optimum fp32", "optimum int8"]
    (one,) = peer_candidates([f"{peer}:int8"], models)
    assert one == both[1]
    assert (one.system, one.backend, one.module) == ("optimum", "int8", peer / "peer.py")
    assert one.python == peer / ".venv" / "bin" / "python"
    job = one.job(threads=2)
    assert job["model"] == str(classifier)
    assert job["options"] == {"quantize": "avx512_vnni"}
    assert (job["task"], job["threads"], job["max_length"]) == ("classify", 2, 64)
    assert job["labels"] == ("building", "nature", "tool")
    assert job["settings"] == {"class_weights": "none"}


def test_what_is_no_peer_is_refused(peer: Path, classifier: Path, exported: Path, tmp_path: Path) -> None:
    models = [open_served(classifier)]
    with pytest.raises(ConfigError, match=r"'int9' is not a variant of .*: fp32, int8\. Did you mean 'int8'"):
        peer_candidates([f"{peer}:int9"], models)
    for strange in (str(tmp_path), "transformers", "transformers:fp32", ":fp32"):
        with pytest.raises(ConfigError, match="is not a peer: give a folder with peer.py and variants.toml"):
            peer_candidates([strange], models)
    with pytest.raises(ConfigError, match="peers run checkpoints, and no artefact here is one"):
        peer_candidates([str(peer)], [open_served(exported)])
    (peer / ".venv" / "bin" / "python").unlink()
    with pytest.raises(ConfigError, match="has no environment .*'make peers' installs it"):
        peer_candidates([str(peer)], models)


def test_ours_are_told_what_is_to_be_other_than_in_the_artefact(classifier: Path) -> None:
    (ours,) = our_candidates([open_served(classifier)], (), {"class_weights": "balanced"})
    assert ours.python is None
    assert ours.job(None)["settings"] == {"class_weights": "balanced"}


def test_packed_rows_are_told_by_the_name(exported: Path) -> None:
    plain = open_served(exported)
    found = our_candidates([replace(plain, packed=True)], ["onnxruntime"], {})
    assert [item.name for item in found] == ["onnxruntime packed"]
    found = our_candidates([plain, replace(plain, packed=True)], ["onnxruntime"], {})
    assert [item.name for item in found] == ["onnx onnxruntime", "onnx onnxruntime packed"]

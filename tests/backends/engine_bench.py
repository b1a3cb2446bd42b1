"""An engine on the fake GPU, for the tests of the runtime."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import bertfast
from bertfast import artifact
from bertfast.backends import open_served, tensorrt
from bertfast.backends.engine_plan import EngineRecord, Library, PlanRecord
from bertfast.backends.served import ServedModel
from bertfast.config import ShapeProfile
from bertfast.text.batch import Batch
from tests.backends.fake_gpu import GPU, FakeDriver, FakeTensorRT

PLAN = b"a plan of nothing"
SMALL = ShapeProfile(batch=(1, 1, 2), length=(16, 16, 32))
LARGE = ShapeProfile(batch=(1, 4, 8), length=(16, 32, 48))


def write_engine(
    path: Path, exported: Path, profiles: tuple[ShapeProfile, ...], library: Library, cuda_graphs: bool
) -> ServedModel:
    source = artifact.open_manifest(exported)
    with artifact.create(
        path, "engine", task=source.task, precision=source.precision, labels=source.labels, parents=source.parents
    ) as draft:
        shutil.copytree(exported, draft.path, dirs_exist_ok=True, ignore=shutil.ignore_patterns(artifact.MANIFEST))
        (draft.path / "SM89.plan").write_bytes(PLAN)
        record = EngineRecord(
            library=library,
            library_version=FakeTensorRT.__version__,
            cuda_version="13",
            gpu=GPU.name,
            onnx="model.onnx",
            onnx_sha256=source.files["model.onnx"].sha256,
            plans=(PlanRecord(file="SM89.plan", sha256=artifact.sha256_of(draft.path / "SM89.plan"), target="SM89"),),
            profiles=profiles,
            cuda_graphs=cuda_graphs,
            recipe={},
        )
        draft.settings = source.settings | {"engine": record.model_dump(mode="json")}
    return open_served(path)


class Bench:
    """An engine artefact, the fake GPU that it is loaded on, and what ONNX Runtime makes of the same graph."""

    def __init__(self, path: Path, exported: Path, patch: pytest.MonkeyPatch) -> None:
        self.path, self.exported, self.patch = path, exported, patch
        self.driver = FakeDriver()
        self.source = bertfast.load(exported, "onnxruntime")

    def model(
        self,
        *profiles: ShapeProfile,
        library: Library = "tensorrt",
        cuda_graphs: bool = False,
        output_type: type = np.float32,
    ) -> ServedModel:
        model = write_engine(self.path, self.exported, profiles, library, cuda_graphs)
        width = len(model.context.labels)
        shapes = {
            name: (lambda rows, length: (rows, length, width))
            if name in model.task.per_token
            else (lambda rows, length: (rows, width))
            for name in model.task.outputs
        }
        self.library = FakeTensorRT(self.driver, profiles, shapes, self.source.backend.run, output_type=output_type)
        self.patch.setattr(tensorrt, "load_library", lambda name: self.library)
        self.patch.setattr(tensorrt, "first_gpu", lambda: GPU)
        self.patch.setattr("bertfast.backends.library.first_gpu", lambda: GPU)
        self.patch.setattr("bertfast.backends.cuda.open_driver", lambda: self.driver)
        return model


def batch(rows: int, length: int) -> Batch:
    ones = np.ones((rows, length), np.int64)
    return Batch(ones * 5, ones, ones * 0)

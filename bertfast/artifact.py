"""An artefact: a directory with a manifest that is either whole or not there.

Corpus, checkpoint, ONNX model, engine and report are all artefacts. A stage writes into a draft beside the
place where the artefact is to be, and the last act renames it; what a killed run leaves behind is never
taken for an artefact.

OUT.partial/.bertfast   marks a working place as ours, from the first moment to the last, and is the lock on it
OUT.partial/draft/      what is to become OUT
OUT.partial/retired/    what was at OUT, between the two renames that replace it
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import IO, Any, Literal

from pydantic import ValidationError

from bertfast.config import Config, Precision
from bertfast.errors import ArtifactError, ConfigError

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1
Kind = Literal["data", "corpus", "training-state", "checkpoint", "onnx", "engine", "report"]
LOGS = "logs"
_MARKER = ".bertfast"
_DRAFT, _RETIRED = "draft", "retired"
_LIBRARIES = ("bertfast", "numpy", "tokenizers", "torch", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino")


class FileRecord(Config):
    """One file of an artefact, as it was when the artefact was published."""

    bytes: int
    sha256: str


class Manifest(Config):
    """What an artefact is and where it comes from. A published manifest never changes."""

    schema_version: int = SCHEMA_VERSION
    kind: Kind
    task: str | None = None
    precision: Precision | None = None
    labels: tuple[str, ...] = ()
    bertfast_version: str
    parents: dict[str, str] = {}
    settings: dict[str, Any] = {}
    libraries: dict[str, str] = {}
    hardware: dict[str, Any] = {}
    files: dict[str, FileRecord] = {}

    @property
    def sha256(self) -> str:
        """The artefact's identity: what it is and what its files hold, its logs left out."""
        hashes = {name: record.sha256 for name, record in sorted(self.files.items()) if not name.startswith(f"{LOGS}/")}
        listing = json.dumps([self.kind, self.task, self.precision, self.labels, hashes])
        return hashlib.sha256(listing.encode()).hexdigest()


@dataclass
class Draft:
    """An artefact that is being written. Put files under `path`; set what is known only at the end."""

    path: Path
    settings: dict[str, Any] = field(default_factory=dict)


def version() -> str:
    """The installed version of bertfast."""
    return importlib.metadata.version("bertfast")


def libraries() -> dict[str, str]:
    """The installed versions of the libraries that decide what a number means."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


@cache
def hardware() -> dict[str, Any]:
    """Processor, cores, memory in bytes, and operating system of this machine."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = models[0].partition(":")[2].strip() if models else name
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    return {"cpu": name, "cores": cores, "memory_bytes": memory, "system": f"{platform.system()} {platform.machine()}"}


def partial_path(out: Path) -> Path:
    """The working place beside `out` while it is being written."""
    return out.with_name(out.name + ".partial")


def refuse_existing(out: Path, kind: Kind, overwrite: bool) -> None:
    """Raise ArtifactError where `out` is in the way; with `overwrite` all but a `kind` of ours is in the way.

    What a run that was killed between its two renames had put aside is at `out` again, and may be in the way, too.
    """
    if not out.exists() and (partial_path(out) / _RETIRED / MANIFEST).is_file():
        with _working_place(out):
            pass
    if not out.exists():
        return
    if not overwrite:
        raise ArtifactError(f"{out} is already there. Choose another --out, or pass --overwrite to replace it.")
    if out.is_dir() and not any(out.iterdir()):
        return
    try:
        manifest = read_manifest(out, kind)
    except ArtifactError as error:
        raise ArtifactError(f"--overwrite replaces only a '{kind}' of bertfast. {error}") from None
    if foreign := [name for name in _files(out) if name != MANIFEST and name not in manifest.files]:
        raise ArtifactError(
            f"{out} holds {len(foreign)} file(s) that its manifest does not name, and --overwrite would delete them: "
            f"{', '.join(foreign[:5])}{', …' if foreign[5:] else ''}. Move them, or choose another --out."
        )


def make_own_directory(path: Path) -> None:
    """Make a directory that is marked as a working place of bertfast, or find it as such.

    Raises:
        ArtifactError: something else is there.
    """
    if path.exists() and not (path / _MARKER).is_file() and not (path.is_dir() and not any(path.iterdir())):
        raise ArtifactError(f"{path} is in the way, and bertfast did not make it. Move it, or choose another --out.")
    path.mkdir(parents=True, exist_ok=True)
    (path / _MARKER).touch()


def remove_own_directory(path: Path) -> None:
    """Remove a working place of an earlier run, if there is one; ArtifactError where it is not marked as ours.

    The mark goes last: a kill in between leaves no directory that is nobody's.
    """
    if path.exists():
        make_own_directory(path)
        _empty(path)
        (path / _MARKER).unlink()
        with contextlib.suppress(OSError):  # NFS keeps the marker under another name as long as it is held
            path.rmdir()


def _empty(path: Path) -> None:
    for item in path.iterdir():
        if item.is_dir() and not item.is_symlink():
            shutil.rmtree(item)
        elif item.name != _MARKER:
            item.unlink()


def hold(path: Path, what: str) -> IO[bytes]:
    """Hold a working place for this process until the file that is returned is closed, or the process ends.

    Args:
        path: a directory that `make_own_directory` has made.
        what: what another process would be doing there.
    Raises:
        ArtifactError: another process holds it.
    """
    marker = path / _MARKER
    stream = marker.open("rb+")
    try:
        import fcntl

        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not (marker.exists() and os.path.samestat(os.fstat(stream.fileno()), marker.stat())):
            raise BlockingIOError  # who held it removed it after it was opened here
    except BlockingIOError:
        stream.close()
        raise ArtifactError(f"another process is {what} in {path}. Wait for it, or end it.") from None
    except (ImportError, OSError):  # Windows, and file systems of clusters that know no locks
        text = f"nothing in {path.parent} can be locked: see to it that no second process works there."
        warnings.warn(text, stacklevel=2)
    return stream


@contextlib.contextmanager
def _working_place(out: Path) -> Iterator[Path]:
    """`OUT.partial` for this process alone, emptied of what a killed run left; it goes at the end of the block."""
    place = partial_path(out)
    make_own_directory(place)
    with hold(place, "writing"):
        _put_back(place / _RETIRED, out)
        _empty(place)
        try:
            yield place
        finally:
            _put_back(place / _RETIRED, out)
            remove_own_directory(place)


def _put_back(retired: Path, out: Path) -> None:
    if (retired / MANIFEST).is_file() and not out.exists():
        retired.rename(out)


@contextlib.contextmanager
def create(
    out: Path,
    kind: Kind,
    *,
    task: str | None = None,
    precision: Precision | None = None,
    labels: tuple[str, ...] = (),
    parents: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> Iterator[Draft]:
    """Write an artefact atomically: files into the draft, then manifest, fsync, rename.

    An exception inside the block removes the draft and leaves what was at `out` as it was.

    Raises:
        ArtifactError: `out` is in the way, or cannot be written.
    """
    out = out.resolve()  # a link stays one
    refuse_existing(out, kind, overwrite)
    with _working_place(out) as place:
        draft = Draft(place / _DRAFT)
        draft.path.mkdir()
        yield draft
        manifest = Manifest(
            kind=kind,
            task=task,
            precision=precision,
            labels=labels,
            bertfast_version=version(),
            parents=dict(parents or {}),
            settings=draft.settings,
            libraries=libraries(),
            hardware=hardware(),
            files=_record_files(draft.path),
        )
        (draft.path / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
        refuse_existing(out, kind, overwrite)
        _replace_directory(draft.path, out, place / _RETIRED)


def _replace_directory(source: Path, target: Path, retired: Path) -> None:
    """Make `source` durable and move it to `target`; what is there waits at `retired` until the new one is in place."""
    for path in sorted(source.rglob("*")):
        _fsync(path)
    _fsync(source)
    if target.exists():
        target.rename(retired)
    source.rename(target)
    _fsync(target.parent)
    (retired / MANIFEST).unlink(missing_ok=True)  # first of all: what is half removed is never put back


def open_manifest(path: Path, kind: Kind | None = None, *, verify_hashes: bool = True) -> Manifest:
    """Read and check an artefact's manifest; every file must have the size and, by default, the hash it names.

    Raises:
        ArtifactError: no directory, no manifest, a torn one, another kind, or a file that differs.
    """
    manifest = read_manifest(path, kind)
    for name, record in manifest.files.items():
        check_file(path / name, record, verify_hashes)
    return manifest


def read_manifest(path: Path, kind: Kind | None = None) -> Manifest:
    """Read an artefact's manifest alone, as `open_manifest` does before it looks at the files."""
    if not path.is_dir():
        state = "is a file" if path.exists() else "does not exist"
        raise ArtifactError(f"{path} {state}. An artefact is a directory that bertfast has written.")
    try:
        values = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        _refuse_other_schema(path, values)
        manifest = Manifest.model_validate(values)
    except FileNotFoundError:
        remedy = f" Adopt the graph first: bertfast adopt {path} --out DIR" if any(path.glob("*.onnx")) else ""
        raise ArtifactError(
            f"{path} has no {MANIFEST}: it is not an artefact of bertfast, or half of one.{remedy}"
        ) from None
    except (ValidationError, ConfigError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(
            f"{path / MANIFEST} is damaged ({str(error).splitlines()[0]}). Copy the artefact again or make it anew."
        ) from None
    for name in manifest.files:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ArtifactError(f"{path / MANIFEST} names {name}, which lies outside the artefact. Do not use it.")
    if kind is not None and manifest.kind != kind:
        raise ArtifactError(f"{path} is an artefact of kind '{manifest.kind}', and '{kind}' is needed here.")
    return manifest


def _refuse_other_schema(path: Path, values: Any) -> None:
    if not isinstance(values, dict) or not isinstance(values.get("schema_version"), int):
        raise ArtifactError(f"{path / MANIFEST} is not a manifest of bertfast.")
    if values["schema_version"] != SCHEMA_VERSION:
        raise ArtifactError(
            f"{path} has manifest schema {values['schema_version']}, and this version reads {SCHEMA_VERSION}. "
            f"It was made by bertfast {values.get('bertfast_version')}: use that version, or make it anew."
        )


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, read in blocks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_of_all(files: Sequence[Path]) -> str:
    """The identity of files that are one thing: of the one, or of all with their names."""
    hashes = {file.name: sha256_of(file) for file in files}
    return hashes[files[0].name] if len(hashes) == 1 else hashlib.sha256(json.dumps(hashes).encode()).hexdigest()


def check_file(path: Path, record: FileRecord, verify_hash: bool = True) -> None:
    """Raise ArtifactError unless a file has the size and, by default, the hash that its manifest names."""
    if not path.is_file():
        raise ArtifactError(f"{path} is missing from its artefact. Copy the artefact again or make it anew.")
    size = path.stat().st_size
    if size != record.bytes:
        raise ArtifactError(
            f"{path} has {size:,} bytes and its manifest says {record.bytes:,}: it was cut short or changed. "
            "Copy the artefact again or make it anew."
        )
    if verify_hash and sha256_of(path) != record.sha256:
        raise ArtifactError(f"{path} is not the file that its manifest names (SHA-256 differs). Make it anew.")


def _record_files(root: Path) -> dict[str, FileRecord]:
    return {
        name: FileRecord(bytes=(root / name).stat().st_size, sha256=sha256_of(root / name)) for name in _files(root)
    }


def _files(root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in sorted(root.rglob("*")) if path.is_file()]


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Data sets of the Hugging Face hub as local files; the library `datasets` fetches them and keeps them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from bertfast.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

PREFIX = "hub:"
REPOSITORY = r"[\w.-]+(?:/[\w.-]+)?"
_REFERENCE = re.compile(rf"{PREFIX}({REPOSITORY})(?:/([\w.-]+))?(?::(.+))?")


def local_data(path: Path) -> Path:
    """The file to read: `path` itself or, for `hub:OWNER/NAME[/CONFIG][:SPLIT]`, a Parquet file with
    the rows of that split.

    The file lies in the cache of `datasets` and is written at each call, so that it is as new as the data there. Class
    numbers become their names. SPLIT is all that `datasets` takes, such as `train[:5000]`.

    Raises:
        DataError: the reference is malformed, the hub cannot be reached or lacks what it names, or there are several
            splits and none is named.
    """
    reference = path.as_posix()
    if not reference.startswith(PREFIX):
        return path
    parts = _REFERENCE.fullmatch(reference)
    if parts is None:
        raise DataError(f"{reference} is not of the form hub:OWNER/NAME[/CONFIG][:SPLIT]. Correct it.")
    rows = name_labels(_one_split(reference, _load(reference, *parts.groups())))

    import datasets

    folder = Path(datasets.config.HF_DATASETS_CACHE) / "bertfast"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{quote(reference.removeprefix(PREFIX), safe='')}.parquet"
    draft = file.with_suffix(f".{os.getpid()}")
    rows.to_parquet(draft)
    return draft.replace(file)


def name_labels(rows: Dataset) -> Dataset:
    """The rows with class names, or lists of them, in place of numbers; a number below 0 stands for none: None."""
    import datasets

    def class_label(feature: Any) -> Any:
        item = feature.feature if isinstance(feature, datasets.List) else feature
        return item if isinstance(item, datasets.ClassLabel) else None

    names = {column: label.names for column, feature in rows.features.items() if (label := class_label(feature))}
    if not names:
        return rows
    text = datasets.Value("string")
    features = {
        column: (datasets.List(text) if isinstance(feature, datasets.List) else text) if column in names else feature
        for column, feature in rows.features.items()
    }
    return rows.map(_names_of_batch, batched=True, fn_kwargs={"names": names}, features=datasets.Features(features))


def _names_of_batch(batch: Mapping[str, list[Any]], names: Mapping[str, Sequence[str]]) -> dict[str, list[Any]]:
    return {column: [_name(value, known) for value in batch[column]] for column, known in names.items()}


def _name(value: Any, names: Sequence[str]) -> Any:
    if isinstance(value, list):
        return [_name(item, names) for item in value]
    return None if value is None or value < 0 else names[value]


def _load(reference: str, name: str, config: str | None, split: str | None) -> Any:
    """A Dataset, or a DatasetDict where no split is named. `datasets` runs no code of a data set."""
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        return datasets.load_dataset(name, config, split=split)
    except ConnectionError as error:
        raise DataError(
            f"{reference}: the hub cannot be reached ({_first_line(error)}), and the data set is not in its cache. "
            "Give a local path."
        ) from None
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{reference}: {_first_line(error)} The form is hub:OWNER/NAME[/CONFIG][:SPLIT].") from None


def _one_split(reference: str, loaded: Any) -> Dataset:
    import datasets

    if not isinstance(loaded, datasets.DatasetDict):
        return loaded
    if len(loaded) > 1:
        raise DataError(f"{reference} has the splits {', '.join(loaded)}. Name one: {reference}:{next(iter(loaded))}.")
    return next(iter(loaded.values()))


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]

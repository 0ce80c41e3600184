"""Images in parquet files as Hugging Face has them: a column of bytes, and one of labels."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convnorm.experiment.data.images import checked_classes
from convnorm.experiment.data.preparing.optional import imported
from convnorm.experiment.data.preparing.parts import Source, numbered
from convnorm.experiment.data.stream import status_of
from convnorm.experiment.errors import InputError


@dataclass(frozen=True)
class Rows:
    """The images in a group of rows of a file."""

    file: Path
    group: int
    num: int
    column: str

    def __len__(self) -> int:
        return self.num

    def contents(self) -> Iterator[tuple[str, bytes | InputError]]:
        values = _column(_opened(self.file), self.file, self.group, self.column)
        for row, value in enumerate(values):
            name = f"{self.file}: row {row} of group {self.group}"
            content = value.get("bytes") if isinstance(value, dict) else value
            if not isinstance(content, bytes):
                content = InputError(
                    f"{name}: {self.column}: has no bytes; expected an encoded image"
                )
            yield name, content


def parquet_source(files: Sequence[Path], image_column: str, label_column: str | None) -> Source:
    """Find the images of parquet files, in the order of files and rows.

    image_column: of bytes, or of structs that have `bytes`. label_column: of whole numbers; None is
    `label`, and one class where there is no such column. Names of classes are those that Hugging
    Face writes, else the labels.

    Raises:
        InputError: pyarrow is not installed, a file cannot be read, a column is missing or has
            other labels, or only some of the files have labels.
    """
    parts, labels, names = [], [], None
    asked = {"--image_column": image_column, "--label_column": label_column}
    label_column = label_column or "label"
    for file in files:
        table = _opened(file)
        columns = list(table.schema_arrow.names)
        for option, column in asked.items():
            if column is not None and column not in columns:
                raise InputError(
                    f"{option}: {file} has no {column!r}; expected one of {', '.join(columns)}"
                )
        for group in range(table.num_row_groups):
            num = table.metadata.row_group(group).num_rows
            parts.append(Rows(file, group, num, image_column))
            if label_column in columns:
                labels += _column(table, file, group, label_column)
        names = names or _names(table, label_column)
    num = sum(map(len, parts))
    if num == 0:
        raise InputError(f"{files[0]}: no rows in it; expected images")
    if labels and len(labels) != num:
        raise InputError(f"{files[0]}: {label_column}: is not in all files; expected all or none")
    for label in labels:
        if type(label) is not int or label < 0 or (names and label >= len(names)):
            raise InputError(
                f"--label_column: {label_column}: {label!r} is not allowed; expected "
                f"{f'0 to {len(names) - 1}' if names else 'whole numbers, 0 or more'}"
            )
    if not labels:
        numbers, classes = np.zeros(num, np.int64), ("all",)
    elif names:
        numbers, classes = np.array(labels, np.int64), checked_classes(names, files[0])
    else:
        numbers, classes = numbered(labels)
    found = f"{len(files)} parquet files" + ("" if labels else f" (no column {label_column!r})")
    return Source(
        parts,
        numbers,
        classes,
        found,
        [*status_of(files, files[0].parent), image_column, label_column],
    )


def _opened(file: Path) -> Any:
    parquet = imported("pyarrow.parquet", "pyarrow", file)
    try:
        return parquet.ParquetFile(file)
    except Exception as error:  # which one depends on what is damaged
        reason = str(error).splitlines()[0]
        raise InputError(f"{file}: cannot be read as a parquet file ({reason})") from None


def _column(table: Any, file: Path, group: int, column: str) -> list[Any]:
    try:
        return table.read_row_group(group, columns=[column]).column(column).to_pylist()
    except Exception as error:  # which one depends on what is damaged
        reason = str(error).splitlines()[0]
        raise InputError(f"{file}: {column}: cannot be read ({reason})") from None


def _names(table: Any, column: str) -> list[str] | None:
    """Return the names of the classes, which Hugging Face's library writes beside the schema."""
    try:
        written = json.loads((table.schema_arrow.metadata or {})[b"huggingface"])
        names = written["info"]["features"][column]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return list(names) if names and all(type(name) is str for name in names) else None

"""What a SOURCE of scripts/prepare_data.py is: a folder of images, shards, parquet or an LMDB."""

from pathlib import Path

from convnorm.experiment.data.folder import entries_of, files_of, split_folder
from convnorm.experiment.data.images import said
from convnorm.experiment.data.preparing.lsun import FILE, lsun_source
from convnorm.experiment.data.preparing.parquet import parquet_source
from convnorm.experiment.data.preparing.parts import Source, Span, in_parts
from convnorm.experiment.data.preparing.tar_shards import tar_source
from convnorm.experiment.data.split_names import kinds
from convnorm.experiment.data.stream import status_of
from convnorm.experiment.errors import InputError

SOURCES = "a folder of images or of classes, .tar or .parquet files or a folder of them, or an LMDB"


def source_at(path: Path, image_column: str, label_column: str | None) -> Source:
    """Find the images of one split.

    path: one of `SOURCES`. image_column, label_column: see `parquet_source`.

    Raises InputError for what is none of them or holds no images, for a folder that holds splits,
    and for a folder that holds anything else beside .tar or .parquet files.
    """
    if path.is_file() and path.suffix == ".tar":
        return tar_source([path])
    if path.is_file() and path.suffix == ".parquet":
        return parquet_source([path], image_column, label_column)
    if not path.is_dir():
        state = "is none of these" if path.exists() else "not found"
        raise InputError(f"SOURCE: {path}: {state}: {SOURCES}")
    if (path / FILE).is_file():
        return lsun_source(path)
    if any(path.glob("[!.]*.tar")):
        return tar_source(_shards(path, ".tar"))
    if any(path.glob("[!.]*.parquet")):
        return parquet_source(_shards(path, ".parquet"), image_column, label_column)
    split_folder(path, None)  # refuses what has splits
    return _folder(path)


def _shards(folder: Path, suffix: str) -> list[Path]:
    """The files of a folder that holds those of one split alone, in the order of their names."""
    entries = entries_of(folder)
    files = [file for file in entries.files if file.suffix == suffix]
    others = [file for file in entries.files if file.suffix not in (suffix, ".npy")]  # OUT is .npy
    if others := [*entries.folders, *others]:
        raise InputError(f"SOURCE: {others[0]}: stands beside {suffix} files; expected these alone")
    splits = set().union(*(kinds(file.stem) for file in files))
    if len(splits) > 1:
        raise InputError(
            f"SOURCE: {folder}: holds files of {' and '.join(sorted(splits))}; expected those of "
            "one split, in a folder of their own"
        )
    return files


def _folder(path: Path) -> Source:
    files, labels, classes, skipped = files_of(path)
    spans = [Span(str(file), str(file)) for file in files]
    return Source(in_parts(spans), labels, classes, f"files{said(skipped)}", status_of(files, path))

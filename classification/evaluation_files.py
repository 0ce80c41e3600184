"""An evaluation's record, its picture and its results of single images as files.

They lie beside the checkpoint, and are read again only as long as they belong together. A record
is replaced only by one that holds all of it.
"""

import hashlib
import io
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from classification.evaluation_options import CERTIFIED, Options, differences_in_name
from classification.evaluation_record import accuracy
from classification.evaluation_report import plot
from classification.records import Accuracy, Evaluation
from convnorm.experiment import codec
from convnorm.experiment.errors import InputError
from convnorm.experiment.files import read as read_bytes
from convnorm.experiment.files import write, write_json
from convnorm.experiment.run.checkpoint import EVALUATION

WRITTEN = "what evaluate_cls.py writes"
SAME = ("checkpoint", "data", "chance", "batch_size", "seed", "torch")


def record_file(checkpoint_file: Path, options: Options, own_eps: float) -> Path:
    """Return where the record of an evaluation lies: its name tells the settings.

    own_eps: the run's `adversary.eps`, in grey levels.
    """
    name = f"{checkpoint_file.stem}{differences_in_name(options, own_eps)}.json"
    return checkpoint_file.parent / EVALUATION / name


def save(record: Evaluation, right: dict[str, Tensor], file: Path) -> None:
    """Write a record, its picture and which images are right, as `evaluate` returned them.

    The record is written last: with the SHA-256 of the .npz in it, a kill in between cannot pair
    the numbers of one evaluation with the images of another. A record that lies there and has
    something that this one lacks, because it is of other weights, data or versions, is kept under
    another name, with its picture and images; so is what cannot be read.
    """
    _make_way(file, record)
    picture, images = file.with_suffix(".png"), file.with_suffix(".npz")
    if png := plot(record):
        write(picture, lambda opened: opened.write(png))
    else:
        picture.unlink(missing_ok=True)  # it would be that of another record
    content = io.BytesIO()
    np.savez(content, **{name: values.numpy() for name, values in right.items()})
    write(images, lambda opened: opened.write(content.getbuffer()))
    sha256 = hashlib.sha256(content.getbuffer()).hexdigest()
    write_json(file, codec.to_json(replace(record, right_sha256=sha256)))


def read(file: Path) -> Evaluation:
    """Read a record; InputError if the file is missing, damaged or of another version."""
    record = codec.read(Evaluation, file, WRITTEN)
    for counted in _counted(record):
        if not _is_sound(counted):
            raise InputError(
                f"{file}: damaged: {counted.correct} of {counted.n} are not {counted.value:.6g} "
                f"in {counted.interval}; expected {WRITTEN}"
            )
    return record


def others(file: Path, record: Evaluation) -> dict[Path, Evaluation]:
    """Return the records of the same checkpoint that lie beside `file`, if they can be read.

    What cannot be read is told on standard error.
    """
    found, stem = {}, Path(record.checkpoint.file).stem
    for other in sorted(file.parent.glob("*.json")):
        if other == file or not other.name.startswith(stem):
            continue
        try:
            there = read(other)
        except InputError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        if there.checkpoint == record.checkpoint:
            found[other] = there
    return found


def load(
    checkpoint_file: Path, file: Path | None = None
) -> tuple[Evaluation, dict[str, np.ndarray]]:
    """Read what `save` wrote, as long as it is of this very checkpoint.

    file: of the record; None for that of the usual settings.

    Raises:
        InputError: A file is missing, damaged or of another version, or the files are not of one
            evaluation.
    """
    file = file or checkpoint_file.parent / EVALUATION / f"{checkpoint_file.stem}.json"
    images = file.with_suffix(".npz")
    expected = f"expected what evaluate_cls.py writes of {checkpoint_file}"
    try:
        with checkpoint_file.open("rb") as opened:
            sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{checkpoint_file}: {error.strerror}; expected a checkpoint") from None
    record, content = read(file), read_bytes(images, WRITTEN)
    if record.checkpoint.sha256 != sha256:
        raise InputError(f"{file}: is of a checkpoint that was there before; {expected}")
    if record.right_sha256 != hashlib.sha256(content).hexdigest():
        raise InputError(f"{images}: is of another evaluation than {file.name}; {expected}")
    try:
        with np.load(io.BytesIO(content)) as arrays:
            right = dict(arrays)
    except Exception:  # what is raised depends on the damage
        raise InputError(f"{images}: damaged; {expected}") from None
    _check_counts(record, right, images)
    return record, right


def _make_way(file: Path, record: Evaluation) -> None:
    """Keep what lies at `file` under a name of its own, unless `record` holds all of it."""
    if not file.exists():
        return
    digest = hashlib.sha256(read_bytes(file, WRITTEN)).hexdigest()[:8]
    try:
        there = read(file)
    except InputError as error:
        name, why = f"{file.stem}{{}}-{digest}", str(error)  # which nobody tries to read
    else:
        if _holds(record, there):
            return
        name, why = f"{file.stem}-{digest}{{}}", f"{file}: of other measurements"
    for suffix in (".png", ".npz", ".json"):
        if file.with_suffix(suffix).exists():
            file.with_suffix(suffix).replace(file.with_name(name.format(suffix)))
    print(f"{why}; kept as {name.format('.json')}", file=sys.stderr)


def _holds(record: Evaluation, there: Evaluation) -> bool:
    same = all(getattr(record, name) == getattr(there, name) for name in SAME)
    without = replace(record.clean, ece=None, nll=None)  # as records were written before
    clean = there.clean in (record.clean, without)
    attacks = all(attack in record.attacks for attack in there.attacks)
    others = ("certified", "corruptions")
    rest = all(getattr(there, name) in (None, getattr(record, name)) for name in others)
    return same and clean and attacks and rest


def _counted(record: Evaluation) -> list[Accuracy]:
    """Every accuracy that is a count of images."""
    found = [record.clean.top1, record.clean.top5, *(case.accuracy for case in record.worst_cases)]
    found += [record.worst_of_both.accuracy] if record.worst_of_both else []
    found += [point.accuracy for point in record.certified.points] if record.certified else []
    for attack in record.attacks:
        found += [attack.accuracy, *(point.accuracy for point in attack.points)]
        found += attack.stages.values()
    if record.corruptions:
        found += [each for row in record.corruptions.accuracies.values() for each in row]
    return [each for each in found if each is not None]


def _is_sound(found: Accuracy) -> bool:
    """Whether its value and its interval are those of its counts."""
    try:
        expected = accuracy(found.correct, found.n)
    except (ArithmeticError, TypeError, ValueError):
        return False
    close = np.allclose(found.interval, expected.interval, rtol=0, atol=1e-9)  # of any SciPy
    return found.value == expected.value and close


def _check_counts(record: Evaluation, right: dict[str, np.ndarray], file: Path) -> None:
    """Where the flags of single images are not what the record counts, one of them is wrong."""
    counted = {"clean": record.clean.top1}
    counted |= {attack.name: attack.accuracy for attack in record.attacks if attack.accuracy}
    if record.certified:
        counted[CERTIFIED] = record.certified.points[0].accuracy
    for name, found in counted.items():
        if name not in right:
            raise InputError(f"{file}: lacks {name}; expected all that the record counts")
        flags = right[name]
        if flags.dtype != bool or flags.shape != (found.n,) or flags.sum() != found.correct:
            count = np.count_nonzero(flags)
            raise InputError(
                f"{file}: {name}: right about {count} of {flags.size} images; expected the "
                f"{found.correct} of {found.n} that the record counts"
            )

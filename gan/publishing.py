"""Publishes the weights of a run: a folder that `gan.load` reads, with a card for people."""

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from convnorm.experiment import files
from convnorm.experiment.codec import from_json, to_json
from convnorm.experiment.config import to_yaml
from convnorm.experiment.errors import InputError
from convnorm.experiment.pictures import picture_of, save_png
from convnorm.experiment.records import Segment
from convnorm.experiment.run import checkpoint
from convnorm.experiment.run.tracking import read_lines
from gan import card
from gan.config import GanConfig
from gan.models import FORMAT, SAMPLES, LoadedGenerator, generator_in
from gan.published import CARD, CONFIG, DISCRIMINATOR, GENERATOR, MODEL, Published
from gan.published import SAMPLES as PICTURE
from gan.published import SCORES as RECORD
from gan.records import ScoreRecord, record_in
from gan.runs import Which, checkpoint_of

COLUMNS = 8  # of the picture, which has as many rows, or one for each class


def publish(
    run: Path, out: Path, which: Which | None = None, *, discriminator: bool = False
) -> Published:
    """Write the generator of a run folder to the new or empty folder `out`, whole or not at all.

    which: see `checkpoint_of`. discriminator: whether it is published too.

    Raises InputError where there is no such run, no such checkpoint, or it has no discriminator.
    """
    last = run / checkpoint.CHECKPOINT
    if not last.is_file():
        raise InputError(
            f"RUN: {run} holds no {checkpoint.CHECKPOINT}; expected a GAN's run folder"
        )
    file = checkpoint_of(run, which)
    state, sha256 = checkpoint.load_with_hash(file, FORMAT)
    loaded = generator_in(state, sha256, file)
    networks = {GENERATOR: loaded.generator.state_dict()}
    if discriminator:
        if "discriminator" not in state:
            raise InputError(f"--discriminator: {file} holds a generator alone; expected last.pt")
        networks[DISCRIMINATOR] = state["discriminator"]
    config, record = without_paths(loaded.config), _record(run, loaded)
    whole = state if file == last else checkpoint.load(last, FORMAT)
    segments = _segments(whole, last, loaded.step)
    with files.new_folder(out, "OUT") as folder:
        for name, tensors in networks.items():
            rows = {key: tensor.contiguous() for key, tensor in tensors.items()}  # channels_last
            (folder / name).write_bytes(safetensors.torch.save(rows))
        (folder / CONFIG).write_text(to_yaml(config))
        save_png(folder / PICTURE, _picture(loaded))
        if record is not None:
            files.write_json(folder / RECORD, to_json(record))
        written = sorted(folder.iterdir())
        model = Published(
            channels=state["channels"],
            num_classes=loaded.num_classes,
            classes=loaded.classes,
            step=loaded.step,
            selected=which == "best",
            ema=loaded.ema,
            checkpoint_sha256=sha256,
            data_sha256=state["data_sha256"],
            files={file.name: _sha256(file) for file in written},
        )
        files.write_json(folder / MODEL, to_json(model))
        sizes = {file.name: f"{file.stat().st_size:,} bytes" for file in written}
        for name, tensors in networks.items():
            sizes[name] += f", {sum(each.numel() for each in tensors.values()):,} numbers"
        text = card.text(out.name, model, config, record, segments, sizes)
        (folder / CARD).write_text(text)
    return model


def without_paths(config: GanConfig) -> GanConfig:
    """Return a config that tells of a path of its writer's machine the last name alone."""
    data, score = config.data, config.score
    weights = Path(score.weights).name if score.weights else score.weights
    return replace(
        config,
        data=replace(data, root=Path(data.root).name or data.root),
        score=replace(score, weights=weights),
    )


def _record(run: Path, loaded: LoadedGenerator) -> ScoreRecord | None:
    """The run's score of these weights; None where it was not scored at their step."""
    file = run / "metrics.jsonl"
    for line in reversed(read_lines(file)):
        if line["step"] == loaded.step:
            return _without_path(record_in(line, file))
    return None


def _without_path(record: ScoreRecord) -> ScoreRecord:
    """The record without what was found of real images, where that tells of a path."""
    real, selection = record.real, record.selection
    if real.found is not None and os.sep in real.found:
        real = replace(real, found=None)
    return replace(record, real=real, selection=selection and _without_path(selection))


def _segments(state: dict[str, Any], file: Path, step: int) -> tuple[Segment, ...]:
    """What the steps up to `step` were carried out with, by the state of last.pt, `file`."""
    with checkpoint.taken_apart(file):
        segments = [from_json(Segment, each, file) for each in state["segments"]]
    return tuple(each for each in segments if each.step < step)


def _picture(loaded: LoadedGenerator) -> Tensor:
    """The first images that a score of seed 0 draws; of a conditional generator, a row a class."""
    if loaded.classes:
        latents = loaded.prior.by_class(COLUMNS, 0, SAMPLES)
    else:
        latents = loaded.prior.draw(COLUMNS**2, 0, SAMPLES)
    return picture_of(loaded.images(latents), COLUMNS)


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()

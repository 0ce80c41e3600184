"""From the folders of two runs to one record of how they differ.

Two runs that were not measured in the same way are refused.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import NamedTuple

from convnorm.experiment.benchmark.pipeline import Pipeline, Result
from convnorm.experiment.benchmark.results import plateau_gain
from convnorm.experiment.benchmark.soundness import agree, finite, with_sound_picture
from convnorm.experiment.config import differing, yaml_text
from convnorm.experiment.config import read as read_config
from convnorm.experiment.errors import InputError
from convnorm.experiment.pairs import ImageTest, Pair, Side
from convnorm.experiment.statistics import holm, mcnemar

CONFIG = "config.yaml"


class Pairing(NamedTuple):
    """Two results of one protocol; notes: sentences on what only one of the runs has."""

    a: Result
    b: Result
    notes: tuple[str, ...] = ()


ReadPair = Callable[[Path, Path], Pairing]


def gather_pair(a: Path, b: Path, readers: Mapping[str, tuple[Pipeline, ReadPair]]) -> Pair:
    """Read two finished runs.

    readers: name of a pipeline -> the pipeline, and what reads two of its runs.

    Raises:
        InputError: A folder holds no finished run; both are one; the runs are of two pipelines, or
            were not measured in the same way.
    """
    if a.resolve() == b.resolve():
        raise InputError(f"RUN_A and RUN_B: {a} is both; expected two runs")
    names = [_pipeline_of(run_dir, readers) for run_dir in (a, b)]
    if names[0] != names[1]:
        raise InputError(
            f"RUN_A {a} is of {names[0]} and RUN_B {b} of {names[1]}; expected one pipeline"
        )
    pipeline, read_pair = readers[names[0]]
    configs = [read_config(pipeline.config, run_dir / CONFIG) for run_dir in (a, b)]
    pairing = read_pair(a, b)
    results = [_sound(*each) for each in zip((a, b), pairing[:2], strict=True)]
    notes, name = pairing.notes, results[0].curve_name
    if results[1].curve_name != name:
        notes += (f"A followed {name} during training, B {results[1].curve_name}",)
        name = None
        results[1] = replace(results[1], curve_name=results[0].curve_name)  # no reason to refuse
    agree({str(a): results[0], str(b): results[1]})
    sides = [
        Side(
            folder=run_dir,
            kind=config.normalizer.kind,
            seed=config.seed,
            scores=result.scores,
            curve=result.curve,
            plateau_gain=plateau_gain(result),
            picture=result.picture,
            doubts=result.doubts,
        )
        for run_dir, config, result in zip((a, b), configs, results, strict=True)
    ]
    return Pair(
        pipeline=pipeline.name,
        a=sides[0],
        b=sides[1],
        settings=differing(*map(asdict, configs)),
        metrics=results[0].metrics,
        curve_name=name,
        tests=_tests(*results),
        notes=notes,
    )


def _sound(run_dir: Path, result: Result) -> Result:
    try:
        return with_sound_picture(finite(result))
    except InputError as error:
        raise InputError(f"{run_dir}: {error}") from None


def _pipeline_of(run_dir: Path, readers: Mapping[str, tuple[Pipeline, ReadPair]]) -> str:
    """The pipeline whose keys a run's config has."""
    if not run_dir.is_dir():
        raise InputError(f"{run_dir}: no such folder; expected that of a run")
    if not (run_dir / CONFIG).is_file():
        raise InputError(f"{run_dir}: holds no {CONFIG}; expected the folder of a run")
    content = yaml_text.read(run_dir / CONFIG)
    keys = set(content) if isinstance(content, dict) else set()
    known = {
        name: keys & {field.name for field in fields(pipeline.config)}
        for name, (pipeline, _) in readers.items()
    }
    name = max(known, key=lambda name: len(known[name]))
    if not known[name]:
        raise InputError(
            f"{run_dir / CONFIG}: is of no pipeline; expected one of {', '.join(known)}"
        )
    return name


def _tests(a: Result, b: Result) -> tuple[ImageTest, ...]:
    """Test the two classifiers by every score for which single images are known of both."""
    places = [
        (when, score)
        for when, flags in a.right.items()
        for score in flags
        if score in b.right.get(when, {})
    ]
    flags = [(a.right[when][score], b.right[when][score]) for when, score in places]
    tests = [mcnemar(*pair) for pair in flags]
    adjusted = holm([test.p for test in tests])
    return tuple(
        ImageTest(*place, len(pair[0]), test.only_a, test.only_b, test.p, p)
        for place, pair, test, p in zip(places, flags, tests, adjusted, strict=True)
    )

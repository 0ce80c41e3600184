"""What a result must be before it counts: numbers, a whole picture, measured as the others were."""

import math
import sys
from dataclasses import replace

from PIL import Image

from convnorm.experiment.benchmark.pipeline import Result
from convnorm.experiment.config import differences
from convnorm.experiment.errors import InputError

NORMS = {"stable_rank": "stable rank"}  # in words, of what is not called a norm


def finite(result: Result) -> Result:
    """Return the result; InputError where one of its numbers is none."""
    values = [(f"{w} {key}", v) for w, scores in result.scores.items() for key, v in scores.items()]
    values += [(f"{result.curve_name} at step {p.step}", p.value) for p in result.curve]
    values += [
        (f"{side} at step {point.step}", value)
        for point in result.gain
        for side, value in (
            ("gain on real images", point.real),
            ("gain on generated images", point.fake),
            ("margin", point.margin),
        )
    ]
    values += [
        (f"{NORMS.get(kind, f'{kind} norm')} of layer {layer} at step {point.step}", point.value)
        for kind, layers in result.norms.items()
        for layer, points in layers.items()
        for point in points
    ]
    for name, value in values:
        if not math.isfinite(value):
            raise InputError(f"the {name} is {value}; expected a number")
    return result


def with_sound_picture(result: Result) -> Result:
    """Leave a damaged picture out, and say so: the numbers are as good without it."""
    try:
        if result.picture is not None and result.picture.is_file():
            with Image.open(result.picture) as image:
                image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        print(f"warning: {result.picture}: damaged; the report leaves it out", file=sys.stderr)
        return replace(result, picture=None)
    return result


def agree(results: dict[str, Result]) -> None:
    """Raise an InputError that names two runs whose numbers do not belong into one column."""
    first, *others = results
    for other in others:
        differing = differences(results[first].protocol, results[other].protocol)
        if differing:
            raise InputError(
                f"({first}) and ({other}) were not measured in the same way, there and here: "
                f"{'; '.join(differing)}; expected one protocol"
            )
        if results[first].curve_name != results[other].curve_name:
            names = f"{results[first].curve_name} and {results[other].curve_name}"
            raise InputError(f"({first}) and ({other}) followed {names}; expected the same score")

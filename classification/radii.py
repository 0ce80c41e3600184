"""How far an attack may change an image, as people write it: the one place that reads the units.

A radius for pixels in [0, 1] that is taken for grey levels, or the other way round, makes an attack
that does nothing or one that nothing withstands, and its accuracy looks like any other.
"""

import math
import re

from convnorm.experiment.errors import InputError

Length = float | str  # as it is written: 8, "8" or "8/255"

LEAST_LEVELS = 0.5  # less changes no pixel of 8 bits; a radius for pixels in [0, 1] is less
LEAST_NORM = 1 / 255  # one value of one pixel by one level
_WRITTEN = re.compile(r"\s*([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*(/\s*255)?\s*")


def grey_levels(value: Length, key: str) -> float:
    """Return the largest change of a single value, in grey levels of 255.

    value: 8, "8" and "8/255" all mean 8 levels. key: what the error names.

    Raises:
        InputError: The value is written in another way, or is not between 0.5 and 255.
    """
    levels, _ = _read(value)
    if not LEAST_LEVELS <= levels <= 255:
        write = f"{_meant(levels):g}"
        expected = f"grey levels of 255, from {LEAST_LEVELS:g} to 255"
        raise _refused(key, value, f"{expected}: write {write} or {write}/255")
    return levels


def step_levels(value: Length | None, key: str, eps: float) -> float | None:
    """Return the length of a step in grey levels; None stands for a fraction of eps.

    eps: of the ball, in grey levels.

    Raises:
        InputError: As `grey_levels`; or the step is longer than the ball is wide, so that each one
            ends in a corner and the attack is weaker than it looks.
    """
    if value is None:
        return None
    levels = grey_levels(value, key)
    if levels > 2 * eps:
        expected = f"at most {2 * eps:g} grey levels, twice the eps of {eps:g}"
        raise _refused(key, value, expected)
    return levels


def euclidean_norm(value: Length, key: str) -> float:
    """Return the Euclidean norm of an image's change, for values in [0, 1].

    value: 0.5 and "0.5" are the norm; "128/255" is 128/255.

    Raises:
        InputError: The value is written in another way, is not finite, or is less than 1/255.
    """
    number, is_fraction = _read(value)
    norm = number / 255 if is_fraction else number
    if not LEAST_NORM <= norm < math.inf:
        expected = "the Euclidean norm of an image's change, for values in [0, 1], from 1/255"
        raise _refused(key, value, f"{expected}: write 0.5 or 128/255")
    return norm


def _read(value: Length) -> tuple[float, bool]:
    """The number, nan where there is none, and whether 255ths of it are meant."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return (math.inf if value > 1e9 else float(value)), False  # int may be beyond all floats
    found = _WRITTEN.fullmatch(value) if isinstance(value, str) else None
    try:
        return (float(found[1]), found[2] is not None) if found else (math.nan, False)
    except ValueError:  # such as 1.2.3
        return math.nan, False


def _refused(key: str, value: object, expected: str) -> InputError:
    return InputError(f"{key}: {str(value) or repr(value):.40} is not allowed; expected {expected}")


def _meant(levels: float) -> float:
    """What to write instead: where a fraction of [0, 1] may have been meant, its levels."""
    meant = round(255 * levels, 1) if 0 < levels < LEAST_LEVELS else math.nan
    return meant if meant >= LEAST_LEVELS else 8

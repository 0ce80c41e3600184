"""Colours, markers and lines that tell the things in a figure apart, for the colour-blind too."""

from collections.abc import Sequence
from itertools import count

# By Okabe and Ito (2008); the last is the ink of the page, which a dark one replaces.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP<"  # no cross: that is a run that collapsed
LINES = ("-", "--", ":", "-.")

# The place of each kind of normalizer, the same in all reports. The first seven have a colour of
# their own; the others share one with a kind that is rarely beside them.
PLACES = {
    "convnorm": 0,
    "spectral": 1,
    "batch": 2,
    "layer": 3,
    "weight": 4,
    "oni": 5,
    "none": 6,
    "spectral_convnorm": 7,
    "ocnn": 10,
    "affine": 11,
    "own": 12,
    "operator": 9,
    "bidirectional": 17,
    "aol": 18,
    "chain": 19,
    "group": 13,
    "instance": 8,
    "weight_standardization": 26,
}

# Of a light and a dark page.
PAPER = {False: "#ffffff", True: "#14171c"}
INK = {False: "#000000", True: "#e8e8e8"}

# What a line looks like that is there to compare with: chance, or real images against real ones.
REFERENCE = {"color": "gray", "linestyle": (0, (4, 3))}


def places(kinds: Sequence[str | None]) -> list[int]:
    """Return the place of each thing in a figure, for `style`, by its kind of normalizer.

    A kind has one colour in all reports. A second thing of that kind has the colour too, with
    another marker and line. What is of no kind, or of one that is not known here, gets the first
    places whose colours are left.
    """
    taken = [PLACES[kind] for kind in kinds if kind in PLACES]
    colours = {place % len(COLOURS) for place in taken}
    free = [place for place in range(len(PLACES) + len(kinds)) if place not in taken]
    free.sort(key=lambda place: place % len(COLOURS) in colours)  # stable
    found: list[int] = []
    for kind in kinds:
        if kind not in PLACES:
            place = next(each for each in free if each not in found)
        elif PLACES[kind] in found:
            used = {*found, *PLACES.values()}
            place = next(each for each in count(PLACES[kind], len(COLOURS)) if each not in used)
        else:
            place = PLACES[kind]
        found.append(place)
    return found


def style(index: int, ink: str = COLOURS[-1]) -> dict[str, str]:
    """Colour, marker and line of the thing at `index`; no two of the first 28 share all three.

    Colours repeat after seven: the next seven have other markers and another line.
    """
    turn, place = divmod(index, len(COLOURS))
    return {
        "color": (*COLOURS[:-1], ink)[place],
        "marker": MARKERS[(place + turn) % len(MARKERS)],
        "linestyle": LINES[turn % len(LINES)],
    }

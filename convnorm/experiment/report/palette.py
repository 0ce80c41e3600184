"""Colours, markers and lines that tell the things in a figure apart, for the colour-blind too."""

# By Okabe and Ito (2008); the last is the ink of the page, which a dark one replaces.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
LINES = ("-", "--", ":", "-.")

# Of a light and a dark page.
PAPER = {False: "#ffffff", True: "#14171c"}
INK = {False: "#000000", True: "#e8e8e8"}

# What a line looks like that is there to compare with: chance, or real images against real ones.
REFERENCE = {"color": "gray", "linestyle": (0, (4, 3))}


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

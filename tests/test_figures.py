"""The figures of a report: what they leave out of the frame, and what they must not break on."""

import io
from collections import defaultdict
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from example_results import at_gains, changed, classification, gan, renamed_axis
from matplotlib.figure import Figure
from matplotlib.image import imread

from convnorm.catalogue import CATALOGUE
from convnorm.experiment.records import GainPoint, NormPoint
from convnorm.experiment.report import figures
from convnorm.experiment.report.figures import draw
from convnorm.experiment.report.palette import COLOURS, INK, PAPER, PLACES, places, style

ALL = {
    "score_steps",
    "score_seconds",
    "every_run",
    "samples",
    "largest_singular_values",
    "rms_singular_values",
    "stable_ranks",
    "gain",
}


@pytest.fixture
def axes_of(monkeypatch):
    """The axes of the figures in order, which are not made into pictures: that takes time."""
    made = []

    def png(figure: Figure) -> bytes:
        made.append(figure.axes)
        return b""

    monkeypatch.setattr(figures, "as_png", png)
    return made


def corner(png: bytes) -> np.ndarray:
    """The colour of a picture's first pixel, (3,) in [0, 1]."""
    return imread(io.BytesIO(png))[0, 0, :3]


def test_a_gan_has_every_figure_and_a_classifier_no_samples(axes_of, tmp_path):
    assert set(draw(gan(tmp_path), tmp_path, dark=False)) == ALL
    assert set(draw(classification(), tmp_path, dark=False)) == ALL - {"samples", "gain"}


def test_light_and_dark_differ_in_paper_and_ink(tmp_path):
    results = gan(tmp_path)
    light, dark = (draw(results, tmp_path, dark) for dark in (False, True))
    for name in ALL:
        for drawings, paper in ((light, PAPER[False]), (dark, PAPER[True])):
            expected = [int(paper[i : i + 2], 16) / 255 for i in (1, 3, 5)]
            assert corner(drawings[name].png) == pytest.approx(expected, abs=0.01)
        assert light[name].caption == dark[name].caption
    assert INK[True] != INK[False]


def test_a_collapsed_run_does_not_squash_the_others(axes_of, tmp_path):
    """One score of 5,000 left an axis from 1 to 10,000, with all else in one place."""
    results = gan(
        outcomes={("none", "x"): [2.0, 2.1, (2.2, 5e3)], ("convnorm", "x"): [1.5, 1.6, 1.7]}
    )
    draw(results, tmp_path, dark=False)
    (dots,) = axes_of[2]
    assert dots.get_xlim()[1] < 3
    assert any(text.get_text() == "→ 5,000" for text in dots.texts)
    (curves,) = axes_of[0]
    assert curves.get_ylim()[1] < 100


def test_values_over_more_than_a_decade_are_on_a_log_scale_but_never_percentages(axes_of, tmp_path):
    wide = {("none", "x"): [(0.5, 40.0), 1.0], ("convnorm", "x"): [1.5, 40.0]}
    draw(gan(outcomes=wide), tmp_path, dark=False)
    assert axes_of[0][0].get_yscale() == "log"
    axes_of.clear()
    shares = {("batch",): [0.01, 0.02, 0.015], ("convnorm",): [0.8, 0.9, 0.85]}
    draw(classification(shares), tmp_path, dark=False)
    assert axes_of[0][0].get_yscale() == axes_of[2][0].get_xscale() == "linear"
    assert "%" in axes_of[0][0].get_ylabel()


def test_a_single_run_has_a_line_but_no_band_and_no_interval(axes_of, tmp_path):
    draw(gan(outcomes={("none", "x"): [2.0], ("convnorm", "x"): [1.5]}), tmp_path, dark=False)
    assert axes_of[0][0].collections[:] == []
    assert all(len(line.get_xdata()) == 1 for line in axes_of[2][0].lines)


def test_lines_are_means_and_bands_the_range_over_seeds(axes_of, tmp_path):
    results = gan(outcomes={("none", "x"): [2.0, 2.5, 6.0], ("convnorm", "x"): [1.0, 1.3, 1.4]})
    draw(results, tmp_path, dark=False)
    curves = axes_of[0][0]
    assert curves.lines[0].get_ydata()[-1] == pytest.approx(3.5)
    band = curves.collections[0].get_paths()[0].vertices
    last = band[band[:, 0] == 800, 1]
    assert (last.min(), last.max()) == pytest.approx((2.0, 6.0))
    assert curves.get_xlabel() == "steps of training"
    assert axes_of[1][0].get_xlabel() == "time of training (s)"
    assert axes_of[1][0].lines[0].get_xdata()[-1] == pytest.approx(
        (800 / 10 + 800 / 11 + 800 / 12) / 3
    )


def test_the_floor_is_a_dashed_line(axes_of, tmp_path):
    near = {("none", "x"): [0.12, 0.2], ("convnorm", "x"): [0.15, 0.2]}
    drawn = draw(gan(outcomes=near), tmp_path, dark=False)
    assert axes_of[0][0].lines[-1].get_ydata() == pytest.approx([0.165, 0.165])
    assert axes_of[0][0].lines[-1].get_linestyle() == "--"
    assert "out of the frame" not in drawn["score_steps"].caption
    drawn = draw(gan(), tmp_path, dark=False)
    assert "out of the frame: 0.165" in drawn["score_steps"].caption


def test_sixteen_cells_have_sixteen_looks_and_labels_may_hold_anything(tmp_path):
    kinds = ("$", "|", "<i>", "*", "a_b^c", "50 %", "$\\frac$", "convnorm")
    outcomes = {cell: [1.0 + i, 1.1 + i] for i, cell in enumerate(product(kinds, "AB"))}
    assert set(draw(gan(outcomes=outcomes), tmp_path, dark=True)) == ALL - {"samples"}
    looks = {tuple(style(index).items()) for index in range(28)}
    assert len(looks) == 28
    assert style(6, ink="#ffffff")["color"] == "#ffffff" != COLOURS[6]


def test_a_normalizer_has_one_colour_in_all_reports(axes_of, tmp_path):
    """By order of appearance, spectral norm was blue in one report and orange in the next."""
    colours = defaultdict(set)
    for order in (("none", "convnorm", "mine"), ("spectral", "mine", "convnorm", "none")):
        results = gan(outcomes={(kind, "x"): [1.0, 1.1] for kind in order})
        axes_of.clear()
        draw(results, tmp_path, dark=False)
        assert len({line.get_color() for line in axes_of[0][0].lines}) == len(order)
        for line in axes_of[0][0].lines:
            colours[line.get_label().split()[0]].add(line.get_color())
    assert colours["convnorm"] == {style(PLACES["convnorm"])["color"]}
    assert all(len(colours[kind]) == 1 for kind in ("none", "convnorm", "spectral"))


def test_every_kind_of_the_catalogue_has_a_place_of_its_own():
    assert PLACES.keys() == CATALOGUE.keys()
    assert len(set(PLACES.values())) == len(PLACES)


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (["spectral", "convnorm"], [1, 0]),
        (["convnorm", "convnorm", "spectral_convnorm"], [0, 14, 7]),  # blue, all three
        ([None, None], [0, 1]),
        (["convnorm", None, "batch", "mine"], [0, 1, 2, 3]),
        (["affine", None, "mine"], [11, 0, 1]),  # the colour at 4 is taken
        ([*PLACES, None], [*PLACES.values(), 14]),
    ],
)
def test_places_are_fixed_and_what_has_none_gets_what_is_left(kinds, expected):
    assert places(kinds) == expected


def test_places_never_repeat_however_many_things_there_are():
    assert len(set(places([None] * 50 + ["convnorm"] * 50))) == 100


def test_a_value_of_several_fields_has_the_colour_of_its_kind(axes_of, tmp_path):
    """The axis is not normalizer.kind, but its values set that: full and native are both blue."""
    kinds = {"convnorm": "convnorm", "native": "convnorm", "other": "none"}
    results = gan(outcomes={(label, "x"): [1.0, 1.1] for label in kinds})
    axes = {**results.grid["axes"]}
    axes["normalizer.kind"] = {it: {"normalizer.kind": kind} for it, kind in kinds.items()}
    results = renamed_axis(replace(results, grid={"axes": axes}), "normalizer.kind", "normalizer")
    draw(results, tmp_path, dark=False)
    lines = axes_of[0][0].lines
    assert [line.get_color() for line in lines[:3]] == [COLOURS[0], COLOURS[0], COLOURS[6]]
    assert lines[0].get_marker() != lines[1].get_marker()


def test_samples_are_of_the_first_seed_that_every_cell_has(axes_of, tmp_path):
    results = gan(
        tmp_path, {("none", "x"): ["failed", 2.0, 2.1], ("convnorm", "x"): [1.0, 1.1, 1.2]}
    )
    assert "seed 1" in draw(results, tmp_path, dark=False)["samples"].caption
    results = gan(tmp_path, {("none", "x"): ["failed", "cut"], ("convnorm", "x"): [1.0, 1.1]})
    caption = draw(results, tmp_path, dark=False)["samples"].caption
    assert "seed 0" in caption
    assert "None of none" in caption


def test_many_layers_are_thinned_and_that_is_said(axes_of, tmp_path):
    results = classification()
    layers = {f"l{i}": (NormPoint(0, 1.0 + i), NormPoint(9, 2.0)) for i in range(20)}
    for index in range(len(results.runs)):
        results = changed(results, index, norms={"operator": layers})
    caption = draw(results, tmp_path, dark=False)["largest_singular_values"].caption
    assert "6 of 20 layers" in caption
    titles = [axes.get_title() for axes in axes_of[3]]
    assert titles[0] == "conv 1 (l0)"
    assert titles[-1] == "conv 20 (l19)"


def test_a_layer_that_no_cell_has_at_common_steps_has_no_panel(axes_of, tmp_path):
    """Runs whose logs measured it at other steps: the panel would be empty, and cost the report."""
    results = classification()
    for index, run in enumerate(results.runs):
        apart = {"a": (NormPoint(0, 1.0),), "b": (NormPoint(run.seed, 1.0),)}
        results = changed(results, index, norms={"operator": apart})
    drawn = draw(results, tmp_path, dark=False)
    assert "of every layer" in drawn["largest_singular_values"].caption
    assert [axes.get_title() for axes in axes_of[3]] == ["conv 1 (a)"]
    for index, run in enumerate(results.runs):
        results = changed(results, index, norms={"operator": {"b": (NormPoint(run.seed, 1.0),)}})
    assert "largest_singular_values" not in draw(results, tmp_path, dark=False)


def test_runs_without_curves_norms_or_pictures_still_have_their_dots(tmp_path):
    """A run that is scored at its end alone has none of these."""
    results = gan()
    for index in range(len(results.runs)):
        results = changed(results, index, curve=(), norms={}, gain=(), area=None, collapsed=None)
    assert set(draw(results, tmp_path, dark=False)) == {"every_run"}


def test_gains_have_geometric_means_and_the_plateau_is_shaded(axes_of, tmp_path):
    results = gan()
    draw(results, tmp_path, dark=False)
    (axes,) = next(it for it in axes_of if it[0].get_ylabel() == "gain |dD/dx|")
    assert axes.get_yscale() == "log"
    window = axes.patches[0].get_extents().transformed(axes.transData.inverted())
    assert (window.x0, window.x1) == pytest.approx((80, 160))
    runs = [run.result.gain for run in results.done if run.cell == "convnorm / digits"]
    line = next(it for it in axes.lines if it.get_label().startswith("convnorm"))
    assert line.get_xdata()[0] == 0
    expected = np.prod([gain[0].mean for gain in runs]) ** (1 / len(runs))
    assert line.get_ydata()[0] == pytest.approx(expected)


def test_a_gain_of_zero_has_no_place_and_costs_no_figure(axes_of, tmp_path):
    """A discriminator that is flat for a moment: its logarithm ended the report."""
    results = gan()
    flat = (GainPoint(0, 0.0, 0.1, 0.0), *results.runs[0].result.gain[1:])
    assert "gain" in draw(changed(results, 0, gain=flat), tmp_path, dark=False)
    assert "gain" in draw(changed(results, 0, gain=()), tmp_path, dark=False)  # of an older version


def test_scores_against_gain_join_what_differs_in_the_scale_alone(axes_of, tmp_path):
    results = at_gains()
    drawn = draw(results, tmp_path, dark=False)
    assert next(iter(drawn)) == "score_gain"
    (axes,) = axes_of[0]
    assert axes.get_xscale() == "log"
    curves = {len(line.get_xdata()) for line in axes.lines}
    assert curves == {1, 3}
    joined = [line for line in axes.lines if len(line.get_xdata()) == 3]
    assert len(joined) == 3
    cells = {cell.name: cell for cell in results.cells}
    found = [cells[f"convnorm / {scale}"] for scale in ("1", "1.5", "2")]
    assert joined[-1].get_xdata() == pytest.approx([it.plateau_gain.mean for it in found])
    means = [it.scores["final"]["FD (digits)"].mean for it in found]
    assert joined[-1].get_ydata() == pytest.approx(means)
    assert len(axes.lines) - len(joined) == len(results.done)
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["none", "1", "1.5", "2", "spectral", "1", "1.5", "2", *texts[8:]]
    assert "score_gain" not in draw(at_gains(scales=["1"]), tmp_path, dark=False)
    assert "score_gain" not in draw(gan(), tmp_path, dark=False)


def test_values_that_set_the_scale_beside_others_are_joined_too(axes_of, tmp_path):
    """As the demo has it: spectral norm at ConvNorm's gain is one value of the compared axis."""
    values = {
        "none": {"normalizer.kind": "none"},
        "spectral": {"normalizer.kind": "spectral"},
        "louder": {"normalizer.kind": "spectral", "normalizer.scale": 1.5},
        "native": {"normalizer.kind": "convnorm", "normalizer.grid": "native"},
        "convnorm": {"normalizer.kind": "convnorm"},
    }
    results = gan(outcomes={(label, "x"): [1.0, 1.1] for label in values})
    axes = {**results.grid["axes"], "normalizer.kind": values}
    results = renamed_axis(replace(results, grid={"axes": axes}), "normalizer.kind", "normalizer")
    draw(results, tmp_path, dark=False)
    (axes,) = axes_of[0]
    lines = [line for line in axes.lines if line.get_markersize() == 8]
    assert [len(line.get_xdata()) for line in lines] == [1, 2, 1, 1]
    names = [text.get_text() for text in axes.texts]
    assert sorted(names) == sorted(values)  # both ends of the curve have a name of their own

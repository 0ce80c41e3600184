"""The report: no number that was not measured, no verdict stronger than its test."""

import base64
import csv
import json
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser

import pytest
from example_results import at_gains, changed, classification, gan, renamed_axis, scores_of
from scipy.stats import t

from convnorm.experiment.codec import from_json
from convnorm.experiment.errors import InputError
from convnorm.experiment.records import GeometricSummary, Report
from convnorm.experiment.report import page
from convnorm.experiment.report.answer import answer
from convnorm.experiment.report.figures import Drawing
from convnorm.experiment.report.formats import number
from convnorm.experiment.report.limits import limits
from convnorm.experiment.report.names import spelled_out
from convnorm.experiment.report.page import write

CLEAR = {("none", "x"): [2.5, 2.6, 2.7], ("convnorm", "x"): [1.5, 1.61, 1.7]}


class Page(HTMLParser):
    """The tags, the addresses, the text and the tables of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.links, self.text, self.tables, self.cell = [], [], "", [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        keys = ("src", "srcset", "href", "action", "data", "poster")
        self.links += [value for key, value in attributes if key in keys]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.cell = ""

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.tables[-1][-1].append(self.cell)
            self.cell = None

    def handle_data(self, data):
        self.text += data
        if self.cell is not None:
            self.cell += data


@pytest.fixture
def undrawn(monkeypatch):
    """Drawing takes most of the time, and most of these tests read."""
    drawings = {dark: {"every_run": Drawing(b"\x89PNG" + bytes([dark]), "dots")} for dark in (0, 1)}
    monkeypatch.setattr(page, "draw", lambda results, folder, dark: drawings[dark])


def written(results, folder) -> tuple[str, Page]:
    page = write(results, folder).read_text()
    return (folder / "report.md").read_text(), Page(page)


def numbers_in(value) -> list[float]:
    if isinstance(value, dict | list | tuple):
        return [
            n for v in (value.values() if isinstance(value, dict) else value) for n in numbers_in(v)
        ]
    return [float(value)] if isinstance(value, int | float) else []


def test_numbers_have_three_digits():
    values = (1.4142, 9.996, 999.6, 4698.2, -0.5, 0, 0.000123, 1.2e-7)
    texts = "1.41 10.0 1,000 4,698 -0.500 0 0.000123 1.20e-07"
    assert " ".join(map(number, values)) == texts


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The folder of a report with all its pictures."""
    folder = tmp_path_factory.mktemp("drawn")
    write(gan(folder), folder)
    return folder


def test_the_page_loads_nothing(drawn):
    """A picture beside the page is lost when the page is sent to somebody."""
    text = (drawn / "report.html").read_text()
    page = Page(text)
    assert {"script", "link", "iframe"}.isdisjoint(page.tags)
    outside = [link for link in page.links if not link.startswith(("data:image/png;base64,", "#"))]
    assert outside == []
    assert not re.search(r"url\(|@import", text)
    assert "default-src 'none'; img-src data:;" in text  # and the browser sees to it
    assert page.tags.count("picture") == page.tags.count("img") == page.tags.count("source") == 8


def test_each_picture_is_another_one_in_the_dark(drawn):
    text = (drawn / "report.html").read_text()
    pictures = [link for link in Page(text).links if link.startswith("data:")]
    assert len(set(pictures)) == len(pictures) == 16
    dark = re.findall(r'media="\(prefers-color-scheme: dark\)" srcset="(.*?)"><img', text)
    assert pictures[::2] == dark


def test_the_pictures_of_the_text_are_the_light_ones(drawn):
    linked = re.findall(r"\]\((.*?)\)", (drawn / "report.md").read_text())
    assert len(linked) == 8
    images = re.findall(r'src="data:image/png;base64,(.*?)"', (drawn / "report.html").read_text())
    files = [base64.b64encode((drawn / link).read_bytes()).decode() for link in linked]
    assert files == images


@pytest.mark.parametrize("results", [gan(), classification()], ids=["gan", "classification"])
def test_every_number_of_the_tables_is_in_the_results(results, undrawn, tmp_path):
    """A number that is computed on the way into the report is one that nobody can check."""
    _, page = written(results, tmp_path)
    known = numbers_in(json.loads((tmp_path / "results.json").read_text()))
    scales = (1, 100, 1e-6, 2**-20)
    shown = {number(scale * value, n) for value in known for scale in scales for n in (2, 3)}
    shown |= {f"{value:,.0f}" for value in known}
    cells = [cell for table in page.tables for row in table[1:] for cell in row[1:]]
    found = [word for cell in cells for word in re.findall(r"(?<![\w.])-?\d[\d,.e-]*", cell)]
    found = [word.rstrip(",.") for word in found]
    versions = {version for many in results.versions.values() for version in many}
    allowed = shown | versions | {"300"}  # the step of a failure
    assert len(found) > 50
    assert [word for word in found if word not in allowed] == []


def test_means_are_those_of_the_runs(undrawn, tmp_path):
    text, _ = written(gan(outcomes=CLEAR), tmp_path)
    assert "| 2.60 ± 0.10 | 2.35 to 2.85 |" in text


def test_where_a_run_selected_the_last_weights_stand_beside(undrawn, tmp_path):
    """A GAN that collapsed, a classifier that overfitted; no table where nothing selected."""
    text, _ = written(gan(), tmp_path)
    assert "| cell | n | FD (digits), final - selected | 95 % interval |" in text
    assert "| none / digits | 3 | 2.30 ± 4.0 | -7.60 to 12.2 |" in text
    report = classification({("batch",): [(0.45, 0.40), (0.45, 0.41)], ("convnorm",): [0.4, 0.5]})
    text, _ = written(report, tmp_path)
    assert "| cell | n | pgd20, final - selected (points) | 95 % interval |" in text
    assert "| batch | 2 | -4.50 ± 0.71 | -10.9 to 1.85 |" in text
    cells = tuple(replace(cell, final_minus_selected=None) for cell in report.cells)
    text, _ = written(replace(report, cells=cells), tmp_path)
    assert "final - selected" not in text


def test_a_single_run_has_no_spread(undrawn, tmp_path):
    results = gan(outcomes={("none", "x"): [2.0], ("convnorm", "x"): [1.5]})
    text, page = written(results, tmp_path)
    cells = [cell for table in page.tables for row in table for cell in row]
    assert not any("±" in cell for cell in cells)
    assert "| none / x | 1 | 2.00 (n = 1) |" in text
    assert "No difference from convnorm in final FD (digits) was tested: n = 1." in text
    assert "A t-test takes" not in text


@pytest.mark.parametrize(
    "label",
    ["a|b", "<script>x</script>", "*a*", "a_b_c", "`x`", "[y](z)", "&amp;", "$x$", "~~x~~", "\\|"],
)
def test_labels_survive(label, undrawn, tmp_path):
    """A | in a label opens another column, a < vanishes, a pair of * or _ becomes a style."""
    results = gan(outcomes={(label, "x"): [2.0, 2.1, "failed"], ("convnorm", "x"): [1.5, 1.7, 1.6]})
    results = changed(results, 2, reason=f"because of {label}")
    _, page = written(results, tmp_path)
    assert {"script", "em", "strong"}.isdisjoint(page.tags)
    for table in page.tables:
        assert len({len(row) for row in table}) == 1
    assert page.tables[0][1][0] == f"{label} / x"
    assert f"failed: because of {label}" in page.text
    assert f"{label} / x (seed 2): because of {label}" in page.text


@pytest.mark.parametrize(
    ("axis", "fields", "label", "name"),
    [
        ("penalty", True, "without", "none / penalty: without"),
        ("penalty", True, "with", "none / penalty: with"),
        ("adversary.kind", False, "free", "none / free"),
        ("noise.rate", False, "0.2", "none / rate: 0.2"),
        ("train.flip", False, "true", "none / flip: true"),
        ("optim.decay", False, "none", "none / decay: none"),
        ("noise.kind", False, "none", "none / noise: none"),
        ("model.like", False, "convnorm", "none / like: convnorm"),
    ],
)
def test_a_value_that_does_not_say_what_it_is_stands_behind_its_axis(axis, fields, label, name):
    """`none / without` is a riddle."""
    report = gan(outcomes={(kind, label): [1.5, 1.6] for kind in ("none", "convnorm")})
    shown = spelled_out(renamed_axis(report, "data.name", axis, fields))
    assert shown.cells[0].name == name
    assert {run.cell for run in shown.runs} == {cell.name for cell in shown.cells}
    assert (shown.comparisons[0].cell, shown.reference) == (name, "convnorm")
    assert shown.cells[0].labels[axis] == label


def test_axes_whose_short_names_are_the_same_have_long_ones():
    report = gan(outcomes={(kind, "0.5"): [1.5, 1.6] for kind in ("0.1", "convnorm")})
    report = renamed_axis(report, "data.name", "loss.weight")
    shown = spelled_out(renamed_axis(report, "normalizer.kind", "optim.weight"))
    assert shown.cells[0].name == "optim.weight: 0.1 / loss.weight: 0.5"


def test_the_reference_is_called_as_its_cells_are(undrawn, tmp_path):
    report = gan(outcomes={(kind, "x"): [1.5, 1.6] for kind in ("with", "convnorm")})
    report = renamed_axis(report, "normalizer.kind", "penalty", fields=True)
    text, _ = written(report, tmp_path)
    assert "| against penalty: convnorm |" in text
    assert "penalty: with / x" in text
    saved = json.loads((tmp_path / "results.json").read_text())
    assert [cell["name"] for cell in saved["cells"]] == ["with / x", "convnorm / x"]


def test_figures_are_as_wide_as_the_text_on_every_page():
    """On a page of 500 pixels they were 576 wide and cut."""
    screen = page.PAGE.read_text().partition("@media print")[0]
    text, picture = (
        re.search(rf"^{tag} {{(.*)}}$", screen, re.MULTILINE)[1] for tag in ("p, ul", "img")
    )
    assert "max-width: 46rem" in text
    assert "width: 46rem; max-width: 100%; height: auto" in picture
    assert len(re.findall(r"\bimg\b(?!-src)", screen)) == 1  # no other rule, for no other width


def test_what_is_not_distinguishable_is_never_called_better():
    results = gan(outcomes={("none", "x"): [1.4, 1.5, 1.9], ("convnorm", "x"): [1.5, 1.61, 1.7]})
    assert results.comparisons[0].verdict == "not distinguishable"
    verdict, _, sentence = answer(results)
    assert verdict == (
        "Not distinguishable from convnorm in final FD (digits): none / x "
        "(paired t-tests, n = 3 seeds, Holm-adjusted, 5 %)."
    )
    assert "not distinguishable at n = 3: difference -0.00333" in sentence
    assert not re.search("(?i)better|worse", verdict + sentence)


def test_a_difference_that_only_its_own_interval_shows_is_not_told(tmp_path):
    """Holm's correction counts: alone p is below 5 %, among four tests it is not."""
    outcomes = {(kind, "x"): [1.4, 1.5, 1.9] for kind in ("batch", "layer", "weight")}
    outcomes |= {("none", "x"): [1.65, 1.83, 1.93], ("convnorm", "x"): [1.5, 1.61, 1.7]}
    results = gan(outcomes=outcomes)
    comparison = results.comparisons[3]
    assert comparison.p < 0.05 < comparison.p_holm
    sentences = answer(results)
    assert re.search(
        r"Not distinguishable from convnorm in final FD \(digits\): .*none / x", sentences[0]
    )
    sentence = next(s for s in sentences if s.startswith("none / x"))
    assert "not distinguishable" in sentence
    assert "leaves out 0" in sentence
    assert not re.search("better|worse", sentence)


@pytest.mark.parametrize(
    ("results", "scale", "unit"),
    [
        (
            gan(outcomes={("none", "x"): [1.4, 1.5, 1.9], ("convnorm", "x"): [1.5, 1.61, 1.7]}),
            1,
            "",
        ),
        (classification({("batch",): [0.41, 0.45], ("convnorm",): [0.42, 0.42]}), 100, " points"),
    ],
    ids=["gan", "classification"],
)
def test_what_could_not_have_been_told_is_half_the_width_of_the_interval(results, scale, unit):
    """Computed here from the scores of the runs, and from nothing that the report computed."""
    scores, (comparison,) = scores_of(results), results.comparisons
    pairs = [(scores[comparison.cell, s], scores[comparison.against, s]) for s in results.seeds]
    differences = [scale * (one - other) for one, other in pairs]
    n, mean = len(differences), sum(differences) / len(differences)
    variance = sum((difference - mean) ** 2 for difference in differences) / (n - 1)
    half = t.ppf(0.975, n - 1) * (variance / n) ** 0.5
    sentence = next(s for s in answer(results) if "not distinguishable at" in s)
    told = re.search(
        r"could not have told a difference below ([\d.]+)( points)?(?:\.$|; the plateau gains)",
        sentence,
    )
    assert (told[1], told[2] or "") == (number(half), unit)


@pytest.mark.parametrize(
    ("outcomes", "word"),
    [
        (CLEAR, "worse"),
        ({("none", "x"): [0.5, 0.6, 0.7], ("convnorm", "x"): [1.5, 1.61, 1.7]}, "better"),
    ],
)
def test_a_difference_that_can_be_told_has_its_direction_and_a_positive_size(outcomes, word):
    verdict, fixed, sentence, *_ = answer(gan(outcomes=outcomes))
    assert verdict == (
        f"{word.capitalize()} than convnorm in final FD (digits): none / x "
        "(paired t-tests, n = 3 seeds, Holm-adjusted, 5 %)."
    )
    assert "were fixed before the first run" in fixed
    size = "0.997" if word == "worse" else "1.00"
    assert sentence.startswith(
        f"none / x is {word} than convnorm / x by {size} (95 % interval 0.98"
    )


def test_shares_are_compared_in_points_and_higher_is_better():
    sentence = answer(classification())[2]
    assert sentence.startswith("batch is worse than convnorm by 4.10 points (95 % interval 2.59")


def test_mcnemar_is_said_to_speak_of_networks_alone():
    sentences = answer(classification())
    assert any("speaks of these networks, not of the normalizers" in s for s in sentences)
    summed = next(s for s in sentences if s.startswith("pgd20, batch against convnorm"))
    assert "right on more images in 0, on fewer in 3, and 0 cannot" in summed


def test_collapsed_failed_and_open_runs_are_in_the_report(undrawn, tmp_path):
    text, page = written(gan(), tmp_path)
    said = " ".join(answer(gan()))
    assert "1 of 7 finished runs collapsed" in said
    assert "none / digits (seed 1). They are in every mean" in said
    assert "spectral / digits (seed 1): the loss is nan at step 300" in said
    assert "spectral / digits (seed 2): cut" in said
    assert "failed: the loss is nan at step 300" in text
    assert "1 of 3" in page.tables[0][1]


def test_scores_that_failed_a_check_are_doubted():
    results = classification()
    assert not any("failed a check" in sentence for sentence in answer(results))
    results = changed(results, 1, doubts=("pgd20 is not beaten by fgsm: 10 % against 8 %",))
    expected = "The scores of 1 run failed a check: batch (seed 1): pgd20 is not beaten"
    assert any(expected in sentence for sentence in answer(results))
    results = changed(results, 2, doubts=("pgd20 is not beaten by fgsm: 11 % against 9 %", "other"))
    (told,) = (sentence for sentence in answer(results) if "failed a check" in sentence)
    assert "The scores of 2 runs" in told
    assert "10 % against 8 % (1 more alike); " in told
    assert told.endswith("): other.")


def test_a_run_that_went_on_elsewhere_is_told_with_what_changed():
    """Its scores are of neither place; parts that differ in their first step alone are one."""
    results = classification()
    (part,) = results.runs[1].result.segments
    same = changed(results, 1, segments=(part, replace(part, step=300)))
    assert not any("went on in another place" in sentence for sentence in answer(same))
    other = replace(part, step=300, hardware="H100", world_size=2, commit="abc")
    (told,) = [it for it in answer(changed(results, 1, segments=(part, other))) if "went on" in it]
    assert "1 of 9 finished runs went on in another place" in told
    assert "batch (seed 1): hardware AMD EPYC, 1 thread to step 300, then H100, in 2 proc" in told
    assert told.endswith("commit unknown to step 300, then abc.")


def test_a_cell_of_failures_alone_keeps_its_row(undrawn, tmp_path):
    outcomes = {("none", "x"): ["failed", "failed"], ("convnorm", "x"): [1.5, 1.6]}
    text, page = written(gan(outcomes=outcomes), tmp_path)
    assert page.tables[0][1][:4] == ["none / x", "0 of 2", "not tested", ""]
    assert "no finished seed in common" in text


def test_equal_differences_are_not_tested_and_that_is_said():
    results = gan(outcomes={("none", "x"): [2.0, 3.0, 4.0], ("convnorm", "x"): [1.0, 2.0, 3.0]})
    verdict, _, sentence, *_ = answer(results)
    assert verdict.endswith("was tested: the differences have no spread.")
    assert "without a spread there is no test; the difference is 1.00" in sentence


def test_limits_are_those_that_apply():
    of_gan, of_classifier = " ".join(limits(gan())), " ".join(limits(classification()))
    assert "not FID" in of_gan
    assert "not FID" not in of_classifier
    assert "flatters" in of_gan
    assert "flatters" not in of_classifier
    assert "which 3 of them cannot show" in of_classifier
    assert "upper bound of robustness" in of_classifier
    assert "upper bound" not in of_gan
    strong = replace(classification(), attacks=("pgd20", "autoattack"))
    assert "upper bound" not in " ".join(limits(strong))


def test_equal_steps_are_said_not_to_be_equal_time_of_what_is_compared():
    """Catches the slowest cell against the fastest of another group, which nobody compares."""
    outcomes = {(kind, x): [1.5, 1.6] for x in "ab" for kind in ("none", "convnorm")}
    results = gan(outcomes=outcomes)
    assert not any("equal time" in sentence for sentence in limits(results))
    took = {"none / a": 10.0, "convnorm / a": 20.0, "none / b": 100.0, "convnorm / b": 150.0}
    cells = []
    for cell in results.cells:
        seconds = replace(cell.cost.seconds, mean=took[cell.name])
        cells.append(replace(cell, cost=replace(cell.cost, seconds=seconds)))
    results = replace(results, cells=tuple(cells))
    expected = "not after equal time: convnorm / a took 2.0 times as long as none / a."
    figure = " See the figure against time."
    assert any(sentence.endswith(expected + figure) for sentence in limits(results))
    for index in range(len(results.runs)):
        results = changed(results, index, curve=())
    assert any(sentence.endswith(expected) for sentence in limits(results))


def test_a_report_over_nothing_is_refused(tmp_path):
    results = gan(outcomes={("none", "x"): ["failed", "cut"], ("convnorm", "x"): ["not begun"] * 2})
    with pytest.raises(InputError, match="nothing to report: none of 4 planned runs is done"):
        write(results, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_json_and_csv_hold_every_number(undrawn, tmp_path):
    results = gan()
    write(results, tmp_path)
    file = tmp_path / "results.json"
    assert from_json(Report, json.loads(file.read_text()), file) == results
    rows = list(csv.DictReader((tmp_path / "results.csv").read_text().splitlines()))
    axes = ["normalizer.kind", "data.name"]
    assert list(rows[0]) == ["cell", *axes, "seed", "when", "quantity", "value"]
    table = {(r["cell"], int(r["seed"]), r["when"], r["quantity"]): r["value"] for r in rows}
    assert len(table) == len(rows)
    assert {(r["cell"], int(r["seed"])) for r in rows} == {(r.cell, r.seed) for r in results.done}
    for run in results.done:
        place, result = (run.cell, run.seed), run.result
        expected = [*numbers_in(result.scores), *numbers_in(asdict(result.cost)), result.area]
        expected += [value for p in result.curve for value in (p.seconds, p.value)]
        series = [points for layers in result.norms.values() for points in layers.values()]
        expected += [point.value for points in series for point in points]
        expected += [result.selected_step, int(result.collapsed), result.plateau_gain]
        expected += [value for p in result.gain for value in (p.real, p.fake, p.margin)]
        values = [float(value) for key, value in table.items() if key[:2] == place]
        assert sorted(values) == sorted(expected)
        assert float(table[*place, "area", "FD (digits)"]) == result.area
        assert int(table[*place, "cost", "macs"]) == result.cost.macs


def test_protocol_versions_and_commands_are_in_the_report(undrawn, tmp_path):
    text, page = written(gan(), tmp_path)
    assert "num_real: 1437" in page.text
    assert "3.11.7; 3.12.3 (several)" in text
    assert "python scripts/benchmark.py --cfg digits_gan" in page.text
    assert page.tags.count("details") == 4
    for run in gan().runs:
        assert run.commands[0] in page.text


def test_a_fence_in_a_command_does_not_end_the_block(undrawn, tmp_path):
    results = gan()
    results = changed(results, 0, commands=("echo 1\n```\n# Title of mine",))
    _, page = written(results, tmp_path)
    assert page.tags.count("h1") == 1


def with_gains(report, **gains: float):
    """The report with these plateau gains of cells, by the first label of their names."""
    cells = []
    for cell in report.cells:
        gain = gains.get(cell.name.split(" / ")[0])
        cells.append(replace(cell, plateau_gain=gain and GeometricSummary(gain, 1.1, 3)))
    return replace(report, cells=tuple(cells))


UNCLEAR = {("none", "x"): [1.4, 1.5, 1.9], ("convnorm", "x"): [1.5, 1.61, 1.7]}
DIFFERENT = "; the plateau gains are {} and 0.520: {}."


@pytest.mark.parametrize(
    ("outcomes", "gain", "told"),
    [
        (CLEAR, 0.64, "At equal gain (0.640 and 0.520), none / x is worse than"),
        (CLEAR, 0.42, "At equal gain (0.420 and 0.520), none / x is worse than"),
        (CLEAR, 0.66, DIFFERENT.format("0.660", "what differs may be the gain")),
        (CLEAR, 0.41, DIFFERENT.format("0.410", "what differs may be the gain")),
        (UNCLEAR, 0.52, "At equal gain (0.520 and 0.520), none / x and convnorm / x are not dist"),
        (UNCLEAR, 1.2, DIFFERENT.format("1.20", "this was no test at equal gain")),
    ],
)
def test_a_comparison_says_whether_it_was_one_at_equal_gain(outcomes, gain, told):
    report = with_gains(gan(outcomes=outcomes), none=gain, convnorm=0.52)
    sentence = answer(report)[2]
    assert sentence.startswith(told) or sentence.endswith(told)
    different = "1 of 1 compared pairs differ by more than a factor of 1.25: none / x"
    equal = "Compared cells have equal plateau gains, to within a factor of 1.25."
    assert (different in " ".join(limits(report))) != (equal in " ".join(limits(report)))
    assert (equal in " ".join(limits(report))) == sentence.startswith("At equal gain")


@pytest.mark.parametrize("gains", [{}, {"none": 0.5}, {"convnorm": 0.5}])
def test_of_gains_that_are_not_known_nothing_is_said(gains):
    report = with_gains(gan(outcomes=CLEAR), **gains)
    assert "gain" not in " ".join([*answer(report), *limits(report)])


def test_the_gain_is_a_column_where_it_was_measured(undrawn, tmp_path):
    text, _ = written(at_gains(), tmp_path)
    assert "| collapsed | gain (plateau) |" in text
    assert re.search(r"\| 0 of 3 \| 0\.\d{3} \N{MULTIPLICATION SIGN}÷ 1\.06 \|", text)
    assert "Gain (plateau): the median norm" in text
    text, _ = written(classification(), tmp_path)
    assert "plateau" not in text


def test_with_many_comparisons_the_limits_name_those_at_other_gains():
    report = at_gains()
    assert len(report.comparisons) > 4
    (told,) = (it for it in limits(report) if "plateau gains of" in it)
    assert told.startswith("The plateau gains of 3 of 6 compared pairs differ by more than")
    assert re.search(r"none / 1\.5 \(0\.2\d\d\) and convnorm / 1\.5 \(0\.99\d\)", told)
    assert "spectral" not in told

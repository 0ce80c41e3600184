"""Reports of benchmarks that nobody ran, for the tests of what is made of reports."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from convnorm.experiment.pictures import save_png
from convnorm.experiment.records import (
    CellCost,
    CellRecord,
    Comparison,
    Cost,
    Count,
    CurvePoint,
    GainPoint,
    McNemarTest,
    Metric,
    NormPoint,
    Report,
    RunRecord,
    RunResult,
    Score,
    Segment,
)
from convnorm.experiment.statistics import (
    area_under,
    geometric_summary,
    holm,
    mcnemar,
    paired,
    plateau,
    summary,
)

STEPS = range(100, 900, 100)
PROBES = range(0, 820, 20)
# Of a discriminator: its gain at the start and where it goes.
GAINS = {"none": (0.01, 0.12), "spectral": (0.15, 0.35), "convnorm": (0.28, 0.42)}
# The final score of a run, (best, final) of one that collapsed, or the state of one without scores.
Outcome = float | tuple[float, float] | str
Outcomes = dict[tuple[str, ...], Sequence[Outcome]]

# One collapsed, one failed, one cut run; spectral has n = 1.
GAN: Outcomes = {
    ("none", "digits"): [2.41, (2.2, 9.1), 2.63],
    ("spectral", "digits"): [1.41, "failed", "cut"],
    ("convnorm", "digits"): [1.57, 1.52, 1.61],
}
CLASSIFICATION: Outcomes = {
    ("batch",): [0.412, 0.421, 0.433],
    ("spectral",): [0.451, 0.463, 0.455],
    ("convnorm",): [0.460, 0.458, 0.471],
}


def gan(folder: Path | None = None, outcomes: Outcomes = GAN) -> Report:
    """Of GANs: (normalizer, data) -> an outcome a seed; with pictures if in a folder."""
    return _report(
        outcomes,
        pipeline="gan",
        axes=("normalizer.kind", "data.name"),
        score=Score("FD (digits)"),
        metrics={"FD (digits)": Metric("lower"), "recall (digits)": Metric("higher")},
        curve=("FD (digits)", Metric("lower")),
        floor={"FD (digits)": 0.165, "recall (digits)": 0.914},
        folder=folder,
    )


def at_gains(
    scales: Sequence[str] = ("1", "1.5", "2"), better: float = 0.2, folder: Path | None = None
) -> Report:
    """Of GANs: (normalizer, scale) -> a score that falls with the logarithm of the gain.

    better: by how much convnorm's is lower at equal gain.
    """
    outcomes: Outcomes = {}
    for kind, (_, end) in GAINS.items():
        for scale in scales:
            gain = end * float(scale) ** 2
            score = 2.5 + math.log(gain / 0.8) ** 2 / 3 - better * (kind == "convnorm")
            outcomes[kind, scale] = [score, score + 0.11, score - 0.08]
    return _report(
        outcomes,
        pipeline="gan",
        axes=("normalizer.kind", "normalizer.scale"),
        score=Score("FD (digits)"),
        metrics={"FD (digits)": Metric("lower")},
        curve=("FD (digits)", Metric("lower")),
        floor={"FD (digits)": 0.165},
        folder=folder,
    )


def classification(outcomes: Outcomes = CLASSIFICATION) -> Report:
    """Of classifiers under attack: (normalizer,) -> an outcome a seed."""
    percent = Metric("higher", percent=True)
    report = _report(
        outcomes,
        pipeline="classification",
        axes=("normalizer.kind",),
        score=Score("pgd20", "selected"),
        metrics={"clean": percent, "pgd20": percent},
        curve=("validation accuracy", percent),
        floor={},
        folder=None,
    )
    return replace(report, mcnemar=_mcnemar(report))


def changed(report: Report, index: int, **changes) -> Report:
    """The report with another record of one run; changes of a result are those of its fields."""
    run = report.runs[index]
    fields = {key: changes.pop(key) for key in list(changes) if hasattr(run, key)}
    result = run.result and replace(run.result, **changes)
    runs = list(report.runs)
    runs[index] = replace(run, **{"result": result, **fields})
    return replace(report, runs=tuple(runs))


def renamed_axis(report: Report, old: str, new: str, fields: bool = False) -> Report:
    """The report with another name of an axis; `fields`: its labels are the grid's own."""

    def named(values):
        return {new if axis == old else axis: value for axis, value in values.items()}

    axes = named(report.grid["axes"])
    if fields:
        axes[new] = {label: {"some.field": n} for n, label in enumerate(report.axes[old])}
    return replace(
        report,
        grid={**report.grid, "axes": axes},
        axes=named(report.axes),
        compared_axis=new if report.compared_axis == old else report.compared_axis,
        cells=tuple(replace(cell, labels=named(cell.labels)) for cell in report.cells),
    )


def _report(outcomes, *, pipeline, axes, score, metrics, curve, floor, folder) -> Report:
    reference = next(labels for labels in outcomes if labels[0] == "convnorm")
    labels = {
        axis: tuple(dict.fromkeys(cell[position] for cell in outcomes))
        for position, axis in enumerate(axes)
    }
    seeds = tuple(range(len(outcomes[reference])))
    runs = tuple(
        _run(_name(cell), seed, outcome, score.name, metrics, folder)
        for cell, found in outcomes.items()
        for seed, outcome in enumerate(found)
    )
    return Report(
        name=f"digits_{pipeline}",
        question="Does a normalizer of the convolutions make the network better?",
        command=f"python scripts/benchmark.py --cfg digits_{pipeline}",
        pipeline=pipeline,
        grid={"pipeline": pipeline, "axes": {axis: list(each) for axis, each in labels.items()}},
        attacks=("pgd20",) if pipeline == "classification" else (),
        score=score,
        compared_axis=axes[0],
        reference="convnorm",
        axes=labels,
        seeds=seeds,
        metrics=metrics,
        curve_name=curve[0],
        curve_metric=curve[1],
        cells=tuple(_cell(cell, axes, runs) for cell in outcomes),
        runs=runs,
        comparisons=_comparisons(outcomes, runs, score, metrics[score.name].better),
        mcnemar=(),
        floor=floor,
        protocol={"name": "digits", "num_real": 1437, "extractor": {"name": "digits"}},
        changed=(),
        left_out=(),
        versions={"torch": ("2.11.0",), "python": ("3.11.7", "3.12.3")},
        hardware=("AMD EPYC, 1 thread",),
    )


def _name(labels: tuple[str, ...]) -> str:
    return " / ".join(labels)


def _run(cell, seed, outcome, primary, metrics, folder) -> RunRecord:
    command = f"python scripts/train.py --normalizer.kind {cell.split(' / ')[0]} --seed {seed}"
    state = outcome if isinstance(outcome, str) else "done"
    return RunRecord(
        cell=cell,
        seed=seed,
        state=state,
        folder=f"runs/benchmark/example/{cell}/seed{seed}",
        commands=(command,),
        attempts=1,
        reason="the loss is nan at step 300" if state == "failed" else "",
        result=_result(cell, seed, outcome, primary, metrics, folder) if state == "done" else None,
    )


def _result(cell, seed, outcome, primary, metrics, folder) -> RunResult:
    best, final = outcome if isinstance(outcome, tuple) else (outcome, outcome)
    decay = [best * (1 + 6 * math.exp(-step / 150)) for step in STEPS]
    if best < 1:  # an accuracy, which rises
        decay = [best * (1 - math.exp(-step / 150)) for step in STEPS]
    decay[-1] = final
    seconds = [step / (10 + seed) for step in STEPS]
    others = {name: 0.8 + 0.01 * seed for name in metrics}
    layers = {str(2 * i): 1 + i + best / 10 for i in range(3)}
    norms = {
        kind: {
            layer: tuple(NormPoint(step, factor * end * (1 + step / 800)) for step in STEPS)
            for layer, end in layers.items()
        }
        for kind, factor in (
            ("operator", 1.0),
            ("matrix", 0.8),
            ("rms", 0.5),
            ("stable_rank", 11.0),
        )
    }
    gain = _gain(cell, seed) if metrics[primary].better == "lower" else ()  # of a discriminator
    return RunResult(
        scores={"final": others | {primary: final}, "selected": others | {primary: best}},
        selected_step=700,
        area=area_under(list(zip(STEPS, decay, strict=True))),
        collapsed=isinstance(outcome, tuple),
        curve=tuple(map(CurvePoint, STEPS, seconds, decay)),
        norms=norms,
        gain=gain,
        plateau_gain=plateau([(point.step, point.mean) for point in gain], STEPS[-1]),
        cost=Cost(
            network="discriminator",
            parameters=34401,
            macs=1_234_567,
            steps=STEPS[-1],
            seconds=seconds[-1],
            peak_memory=345 * 2**20,
        ),
        segments=(Segment(0, None, "2.11.0", "3.11.7", None, "cpu", "AMD EPYC, 1 thread", 1),),
        versions={"torch": "2.11.0", "python": "3.11.7"},
        picture=_picture(folder, cell, seed) if folder else None,
        doubts=(),
    )


def _gain(cell: str, seed: int) -> tuple[GainPoint, ...]:
    """From a start to an end, both times the square of a scale; fakes have a little less."""
    kind, _, scale = cell.partition(" / ")
    start, end = GAINS.get(kind, (0.1, 0.3))
    factor = (float(scale) if scale.replace(".", "").isdigit() else 1.0) ** 2 * 1.06**seed
    points = []
    for step in PROBES:
        gain = factor * end * (start / end) ** math.exp(-step / 30) * (1 + step / 2000)
        points.append(GainPoint(step, gain, 0.9 * gain, 1.5 * (1 - math.exp(-step / 30))))
    return tuple(points)


def _picture(folder: Path, cell: str, seed: int) -> str:
    name = f"{cell.replace(' / ', '-')}-seed{seed}.png"
    noise = torch.Generator().manual_seed(seed)
    save_png(folder / name, torch.randint(256, (3, 32, 32), generator=noise).byte())
    return name


def _cell(labels, axes, runs) -> CellRecord:
    planned = [run for run in runs if run.cell == _name(labels)]
    results = [run.result for run in planned if run.result]
    costs = [result.cost for result in results]
    return CellRecord(
        name=_name(labels),
        labels=dict(zip(axes, labels, strict=True)),
        planned=len(planned),
        n=len(results),
        collapsed=Count(sum(result.collapsed for result in results), len(results)),
        scores={
            when: {name: summary([r.scores[when][name] for r in results]) for name in scores}
            for when, scores in (results[0].scores if results else {}).items()
        },
        area=summary([result.area for result in results]) if results else None,
        plateau_gain=geometric_summary([result.plateau_gain for result in results])
        if any(result.plateau_gain for result in results)
        else None,
        cost=CellCost(
            network=costs[0].network,
            parameters=costs[0].parameters,
            macs=costs[0].macs,
            steps_per_second=summary([cost.steps / cost.seconds for cost in costs]),
            seconds=summary([cost.seconds for cost in costs]),
            peak_memory=summary([cost.peak_memory for cost in costs]),
        )
        if costs
        else None,
        final_minus_selected=summary([_drift(result.scores) for result in results])
        if results
        else None,
    )


def _drift(scores) -> float:
    """Of the one score in which the two differ, if there is one."""
    return sum(scores["final"][name] - scores["selected"][name] for name in scores["final"])


def scores_of(report: Report) -> dict[tuple[str, int], float]:
    """(cell, seed) -> the score that answers the question, of the runs that are done."""
    return _scores(report.runs, report.score)


def _scores(runs, score) -> dict[tuple[str, int], float]:
    return {
        (run.cell, run.seed): run.result.scores[score.at][score.name] for run in runs if run.result
    }


def _comparisons(outcomes, runs, score, better) -> tuple[Comparison, ...]:
    scores, found = _scores(runs, score), []
    for labels in outcomes:
        if labels[0] == "convnorm":
            continue
        cell, against = _name(labels), _name(("convnorm", *labels[1:]))
        seeds = tuple(s for name, s in scores if name == cell and (against, s) in scores)
        difference = interval = p = None
        if seeds:
            test = paired(*([scores[name, seed] for seed in seeds] for name in (cell, against)))
            difference, interval, p = test.difference, test.interval, test.p
        found.append(Comparison(cell, against, seeds, difference, interval, p, None, "not tested"))
    tested = []
    for comparison, p in zip(found, holm([each.p for each in found]), strict=True):
        verdict = "not tested" if p is None else "not distinguishable"
        if p is not None and p < 0.05:
            verdict = "better" if (comparison.difference < 0) == (better == "lower") else "worse"
        tested.append(replace(comparison, p_holm=p, verdict=verdict))
    return tuple(tested)


def _mcnemar(report: Report) -> tuple[McNemarTest, ...]:
    random, found = np.random.default_rng(0), []
    for it in report.comparisons:
        for seed in it.seeds:
            cell = random.random(360) < (0.3 if it.cell == "batch" else 0.45)
            against = random.random(360) < 0.45
            test = mcnemar(cell, against)
            counts = (360, test.only_a, test.only_b, test.p)
            found.append((it.cell, it.against, seed, "pgd20", *counts))
    adjusted = holm([p for *_, p in found])
    return tuple(McNemarTest(*test, p) for test, p in zip(found, adjusted, strict=True))

"""Results of benchmarks that nobody ran, as results.json holds them, for the tests of reports."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from convnorm.experiment.run.tracking import save_png
from convnorm.experiment.statistics import area_under, holm, mcnemar, paired, summary

STEPS = range(100, 900, 100)
# The final score of a run, (best, final) of one that collapsed, or the state of one without scores.
Outcome = float | tuple[float, float] | str

# One collapsed, one failed, one cut run; spectral has n = 1.
GAN = {
    ("none", "digits"): [2.41, (2.2, 9.1), 2.63],
    ("spectral", "digits"): [1.41, "failed", "cut"],
    ("convnorm", "digits"): [1.57, 1.52, 1.61],
}
CLASSIFICATION = {
    ("batch",): [0.412, 0.421, 0.433],
    ("spectral",): [0.451, 0.463, 0.455],
    ("convnorm",): [0.460, 0.458, 0.471],
}


def gan(
    folder: Path | None = None, outcomes: dict[tuple[str, ...], Sequence[Outcome]] = GAN
) -> dict[str, Any]:
    """Results of GANs: (normalizer, data) -> an outcome a seed; with pictures if in a folder."""
    return _results(
        outcomes,
        pipeline="gan",
        axes=("normalizer.kind", "data.name"),
        score={"name": "FD (digits)", "at": "final"},
        measures={
            "FD (digits)": {"better": "lower", "percent": False},
            "recall (digits)": {"better": "higher", "percent": False},
        },
        curve=("FD (digits)", {"better": "lower", "percent": False}),
        floor={"FD (digits)": 0.165, "recall (digits)": 0.914},
        folder=folder,
    )


def classification(
    outcomes: dict[tuple[str, ...], Sequence[Outcome]] = CLASSIFICATION,
) -> dict[str, Any]:
    """Results of classifiers under attack: (normalizer,) -> an outcome a seed."""
    results = _results(
        outcomes,
        pipeline="classification",
        axes=("normalizer.kind",),
        score={"name": "pgd20", "at": "selected"},
        measures={
            "clean": {"better": "higher", "percent": True},
            "pgd20": {"better": "higher", "percent": True},
        },
        curve=("validation accuracy", {"better": "higher", "percent": True}),
        floor={},
        folder=None,
    )
    results["mcnemar"] = _mcnemar(results)
    return results


def _results(outcomes, *, pipeline, axes, score, measures, curve, floor, folder) -> dict[str, Any]:
    reference = next(labels for labels in outcomes if labels[0] == "convnorm")
    labels = {
        axis: list(dict.fromkeys(cell[position] for cell in outcomes))
        for position, axis in enumerate(axes)
    }
    seeds = list(range(len(outcomes[reference])))
    runs = [
        _run(_name(cell), seed, outcome, score["name"], measures, folder)
        for cell, found in outcomes.items()
        for seed, outcome in enumerate(found)
    ]
    return {
        "format": "convnorm-suite/benchmark/1",
        "name": f"digits_{pipeline}",
        "question": "Does a normalizer of the convolutions make the network better?",
        "command": f"python scripts/benchmark.py --cfg digits_{pipeline}",
        "grid": {"pipeline": pipeline, "axes": labels, "seeds": seeds, "score": score}
        | {"attacks": ["pgd20"] if pipeline == "classification" else []},
        "pipeline": pipeline,
        "score": score,
        "compare": {"axis": axes[0], "against": "convnorm"},
        "measures": measures,
        "curve": curve[0],
        "curve_measure": curve[1],
        "axes": labels,
        "seeds": seeds,
        "cells": [_cell(cell, axes, runs, curve[0]) for cell in outcomes],
        "runs": runs,
        "comparisons": _comparisons(outcomes, runs, score, measures[score["name"]]["better"]),
        "mcnemar": [],
        "floor": floor,
        "changed": [],
        "left_out": [],
        "protocol": {"name": "digits", "num_real": 1437, "extractor": {"name": "digits"}},
        "versions": {"torch": ["2.11.0"], "python": ["3.11.7", "3.12.3"]},
        "hardware": ["AMD EPYC, 1 thread"],
    }


def _name(labels: tuple[str, ...]) -> str:
    return " / ".join(labels)


def _run(cell, seed, outcome, primary, measures, folder) -> dict[str, Any]:
    command = f"python scripts/train.py --normalizer.kind {cell.split(' / ')[0]} --seed {seed}"
    state = outcome if isinstance(outcome, str) else "done"
    record = {"cell": cell, "seed": seed, "state": state, "commands": [command], "attempts": 1}
    record["folder"] = f"runs/benchmark/example/{cell}/seed{seed}"
    if state == "failed":
        record["reason"] = "the loss is nan at step 300"
    if state != "done":
        return record
    best, final = outcome if isinstance(outcome, tuple) else (outcome, outcome)
    decay = [best * (1 + 6 * math.exp(-step / 150)) for step in STEPS]
    if best < 1:  # a share, which rises
        decay = [best * (1 - math.exp(-step / 150)) for step in STEPS]
    decay[-1] = final
    seconds = [step / (10 + seed) for step in STEPS]
    others = {name: 0.8 + 0.01 * seed for name in measures}
    scores = {"final": others | {primary: final}, "selected": others | {primary: best}}
    layers = {str(2 * i): 1 + i + best / 10 for i in range(3)}
    norms = {
        kind: {
            layer: [[step, factor * end * (1 + step / 800)] for step in STEPS]
            for layer, end in layers.items()
        }
        for kind, factor in (("operator", 1.0), ("matrix", 0.8), ("rms", 0.5))
    }
    return record | {
        "scores": scores,
        "selected_step": 700,
        "area": area_under(list(zip(STEPS, decay, strict=True))),
        "collapsed": isinstance(outcome, tuple),
        "curve": [list(point) for point in zip(STEPS, seconds, decay, strict=True)],
        "norms": norms,
        "cost": {
            "network": "discriminator",
            "parameters": 34401,
            "macs": 1_234_567,
            "steps": STEPS[-1],
            "seconds": seconds[-1],
            "peak_memory": 345 * 2**20,
        },
        "hardware": "AMD EPYC, 1 thread",
        "versions": {"torch": "2.11.0", "python": "3.11.7"},
        "picture": _picture(folder, cell, seed) if folder else None,
        "doubts": [],
    }


def _picture(folder: Path, cell: str, seed: int) -> str:
    name = f"{cell.replace(' / ', '-')}-seed{seed}.png"
    noise = torch.Generator().manual_seed(seed)
    save_png(folder / name, torch.randint(256, (3, 32, 32), generator=noise).byte())
    return name


def _cell(labels, axes, runs, curve) -> dict[str, Any]:
    planned = [run for run in runs if run["cell"] == _name(labels)]
    done = [run for run in planned if run["state"] == "done"]
    record = {"name": _name(labels), "labels": dict(zip(axes, labels, strict=True))}
    record |= {"planned": len(planned), "n": len(done)}
    record["collapsed"] = {"count": sum(run["collapsed"] for run in done), "n": len(done)}
    if not done:
        return record | {"summaries": {}, "cost": None}
    summaries = {
        when: {name: _summary(run["scores"][when][name] for run in done) for name in scores}
        for when, scores in done[0]["scores"].items()
    }
    summaries["area"] = {curve: _summary(run["area"] for run in done)}
    costs = [run["cost"] for run in done]
    cost = {key: costs[0][key] for key in ("network", "parameters", "macs")}
    cost["steps_per_second"] = _summary(each["steps"] / each["seconds"] for each in costs)
    cost |= {key: _summary(each[key] for each in costs) for key in ("seconds", "peak_memory")}
    return record | {"summaries": summaries, "cost": cost}


def _summary(values) -> dict[str, Any]:
    return asdict(summary(list(values)))


def _comparisons(outcomes, runs, score, better) -> list[dict[str, Any]]:
    scores = {
        (run["cell"], run["seed"]): run["scores"][score["at"]][score["name"]]
        for run in runs
        if run["state"] == "done"
    }
    found = []
    for labels in outcomes:
        if labels[0] == "convnorm":
            continue
        cell, against = _name(labels), _name(("convnorm", *labels[1:]))
        seeds = [seed for name, seed in scores if name == cell and (against, seed) in scores]
        record = {"cell": cell, "against": against, "seeds": seeds, "n": len(seeds)}
        record |= {"difference": None, "interval": None, "p": None}
        if seeds:
            pair = [[scores[name, seed] for seed in seeds] for name in (cell, against)]
            record |= asdict(paired(*pair))
        found.append(record)
    for record, p in zip(found, holm([record["p"] for record in found]), strict=True):
        verdict = "not tested" if p is None else "not distinguishable"
        if p is not None and p < 0.05:
            verdict = "better" if (record["difference"] < 0) == (better == "lower") else "worse"
        record |= {"p_holm": p, "verdict": verdict}
    return found


def _mcnemar(results) -> list[dict[str, Any]]:
    random, found = np.random.default_rng(0), []
    for comparison in results["comparisons"]:
        for seed in comparison["seeds"]:
            cell = random.random(360) < (0.3 if comparison["cell"] == "batch" else 0.45)
            against = random.random(360) < 0.45
            test = mcnemar(cell, against)
            found.append(
                {key: comparison[key] for key in ("cell", "against")}
                | {"seed": seed, "measure": "pgd20", "images": 360, "p": test.p}
                | {"only_cell": test.only_a, "only_against": test.only_b}
            )
    for record, p in zip(found, holm([record["p"] for record in found]), strict=True):
        record["p_holm"] = p
    return found

"""An evaluation's record as a table to print, as a picture, and as files that are read again."""

import hashlib
import io
import json
from itertools import cycle, product
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from convnorm.experiment.errors import InputError
from convnorm.experiment.files import write, write_json
from convnorm.experiment.report.palette import COLOURS, MARKERS
from convnorm.experiment.run.checkpoint import EVALUATION

Record = dict[str, Any]
Row = tuple[str, str, str, str, str]


def table(record: Record) -> str:
    """Return the record as aligned text: an accuracy a line, then what to doubt."""
    checkpoint = record["checkpoint"]
    rows = [("attack", "settings", "n", "accuracy", "95 % interval"), *_rows(record)]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [
        f"{checkpoint['file']}, epoch {checkpoint['epoch']}, {_subject(record)}",
        "",
    ]
    for name, settings, n, accuracy, interval in rows:
        left = f"{name:{widths[0]}}  {settings:{widths[1]}}"
        lines.append(f"{left}  {n:>{widths[2]}}  {accuracy:>{widths[3]}}  {interval}")
    lines += ["", *(_check_line(check) for check in record["checks"])]
    if not record["checks"]:
        lines.append("not checked for masked gradients; --attacks sweep fgsm pgd20 does")
    return "\n".join(lines)


def _subject(record: Record) -> str:
    checkpoint, data = record["checkpoint"], record["data"]
    return (
        f"{checkpoint['arch']} with {checkpoint['normalizer']}, seed {checkpoint['seed']}, trained "
        f"{checkpoint['adversary']}: {data['n']} {data['split']} images of {data['name']}, "
        f"chance {record['chance']:.2%}"
    )


def _rows(record: Record) -> list[Row]:
    clean = record["clean"]
    rows = [_row("clean", name, clean[name]) for name in ("top1", "top5") if clean[name]]
    for attack in record["attacks"]:
        for point in attack.get("points", [attack]):
            rows.append(_row(attack["name"], _settings({**attack, **point}), point))
        for stage, accuracy in attack.get("stages", {}).items():
            rows.append(_row("", f"after {stage}", accuracy))
    for case in record["worst_case"]:
        if len(case["attacks"]) > 1:
            rows.append(_row("worst case", f"{_ball(case)}, all of these", case))
    return rows + (_corruption_rows(record["corruptions"]) if record["corruptions"] else [])


def _corruption_rows(corruptions: Record) -> list[Row]:
    source, mean_over = corruptions["sources"][0]["source"], corruptions["mean_over"]
    rows = [
        _row(name, "mean of severities 1 to 5", mean)
        for name, mean in corruptions["mean_by_corruption"].items()
    ]
    name, over = f"corruptions, {source}", f"mean of {len(mean_over)}"
    means = zip(corruptions["severities"], corruptions["mean_by_severity"], strict=True)
    rows += [_row(name, f"severity {severity}, {over}", mean) for severity, mean in means]
    return [*rows, _row(name, f"severities 1 to 5, {over}", corruptions["mean"])]


def _row(name: str, settings: str, accuracy: Record) -> Row:
    low, high = accuracy["interval"]
    interval = f"{100 * low:5.2f} to {100 * high:6.2f}"
    return name, settings, str(accuracy["n"]), f"{100 * accuracy['accuracy']:.2f} %", interval


def _settings(attack: Record) -> str:
    """What is worth a place in the table of an attack's settings."""
    parts = [_ball(attack)]
    if "steps" in attack:
        size = attack.get("step_size") or attack["step_size_of_eps"] * attack["eps"]
        parts.append(f"{attack['steps']} steps of {_length(attack['norm'], size)}")
    if attack.get("restarts", 1) > 1:
        parts.append(f"{attack['restarts']} restarts")
    if queries := attack.get("queries"):
        parts.append(f"at most {attack['max_queries']} queries")
        if queries["n"]:
            parts.append(f"median {queries['median']:g} to fool")
    return ", ".join(parts)


def _ball(attack: Record) -> str:
    return f"{attack['norm']} {_length(attack['norm'], attack['eps'])}"


def _length(norm: str, length: float) -> str:
    return f"{255 * length:.4g}/255" if norm == "linf" else f"{length:.4g}"


def _check_line(check: Record) -> str:
    return f"{'ok' if check['passed'] else 'DOUBT'}: {check['check']}: {check['detail']}"


def save(record: Record, per_image: dict[str, Tensor], checkpoint_file: Path) -> Path:
    """Write what `evaluate` returned, and its picture, beside the checkpoint.

    Returns the record's file, which is written last: with the SHA-256 of the .npz in it, a kill in
    between cannot pair the numbers of one evaluation with the images of another.
    """
    split = record["data"]["split"]
    name = checkpoint_file.stem + ("" if split == "test" else f"_{split}")
    file = checkpoint_file.parent / EVALUATION / f"{name}.json"
    picture, images = file.with_suffix(".png"), file.with_suffix(".npz")
    if not plot(record, picture):
        picture.unlink(missing_ok=True)  # it would be that of another record
    content = io.BytesIO()
    np.savez(content, **{name: values.numpy() for name, values in per_image.items()})
    write(images, lambda file: file.write(content.getbuffer()))
    sha256 = hashlib.sha256(content.getbuffer()).hexdigest()
    write_json(file, record | {"per_image": {"file": images.name, "sha256": sha256}})
    return file


def load(checkpoint_file: Path) -> tuple[Record, dict[str, np.ndarray]]:
    """Read what `save` wrote of the test split, as long as it is of this very checkpoint.

    Raises:
        InputError: A file is missing or damaged, or they are not of one evaluation.
    """
    file = checkpoint_file.parent / EVALUATION / f"{checkpoint_file.stem}.json"
    images = file.with_suffix(".npz")
    expected = f"expected what evaluate_cls.py writes of {checkpoint_file}"
    try:
        with checkpoint_file.open("rb") as opened:
            sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
        record, content = json.loads(file.read_text()), images.read_bytes()
        if record["checkpoint"]["sha256"] != sha256:
            raise InputError(f"{file}: is of a checkpoint that was there before; {expected}")
        if record["per_image"]["sha256"] != hashlib.sha256(content).hexdigest():
            raise InputError(f"{images}: is of another evaluation than {file.name}; {expected}")
        with np.load(io.BytesIO(content)) as arrays:
            per_image = dict(arrays)
        _check_counts(record, per_image, images)
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}; {expected}") from None
    except InputError:
        raise
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{file}: damaged, or of another version; {expected}") from None
    return record, per_image


def _check_counts(record: Record, per_image: dict[str, np.ndarray], file: Path) -> None:
    """Where the flags of single images are not what the record counts, one of them is wrong."""
    counted = {"clean": record["clean"]["top1"]}
    counted |= {attack["name"]: attack for attack in record["attacks"] if "correct" in attack}
    for name, accuracy in counted.items():
        flags, expected = per_image[name], (accuracy["correct"], accuracy["n"])
        if (flags.sum(), *flags.shape) != expected:
            raise InputError(
                f"{file}: {name}: right about {flags.sum()} of {len(flags)} images; expected the "
                f"{accuracy['correct']} of {accuracy['n']} that the record counts"
            )


def plot(record: Record, path: Path) -> bool:
    """Draw accuracy against eps (linf) and against severity; False where there is neither."""
    panels = []
    if any(attack["norm"] == "linf" for attack in record["attacks"]):
        panels.append(_draw_eps)
    if record["corruptions"]:
        panels.append(_draw_severity)
    if not panels:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # imported here: slow
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4 * len(panels), 4.4), layout="constrained")
    for draw, axes in zip(panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=True):
        draw(axes, record)
        axes.set_ylim(-3, 103)
        axes.set_ylabel("accuracy (%)")
        axes.grid(alpha=0.3)
    figure.suptitle(_subject(record) + "; bars are 95 % intervals", fontsize="medium", wrap=True)
    write(path, lambda file: FigureCanvasAgg(figure).print_png(file))
    return True


def _draw_eps(axes: Any, record: Record) -> None:
    clean = {"eps": 0.0, **record["clean"]["top1"]}
    _bars(axes, [0], [clean], label="clean", color="black", marker="x", linestyle="")
    attacks = [attack for attack in record["attacks"] if attack["norm"] == "linf"]
    attacks.sort(key=lambda attack: "points" not in attack)  # single points lie on the curve
    ticks = {0.0}
    for attack, colour, marker in zip(attacks, cycle(COLOURS), cycle(MARKERS), strict=False):
        points = [clean, *attack["points"]] if "points" in attack else [attack]
        eps = [255 * point["eps"] for point in points]
        line = "-" if "points" in attack else ""
        _bars(axes, eps, points, label=attack["name"], color=colour, marker=marker, linestyle=line)
        ticks.update(eps)
    axes.axhline(100 * record["chance"], color="gray", linestyle="--", label="chance")
    axes.set_xscale("symlog", base=2, linthresh=1)
    axes.set_xlim(-0.2, 1.3 * max(ticks))
    axes.set_xticks(sorted(ticks), [f"{tick:g}" for tick in sorted(ticks)])
    axes.set_xlabel("eps of the attack under linf, in grey levels of 1/255")
    axes.legend(fontsize="small")


def _draw_severity(axes: Any, record: Record) -> None:
    corruptions, clean = record["corruptions"], record["clean"]["top1"]
    severities = [0, *corruptions["severities"]]
    styles = product(("-", "--", ":"), COLOURS)
    for (name, own), (line, colour) in zip(corruptions["accuracies"].items(), styles, strict=False):
        percent = [100 * point["accuracy"] for point in (clean, *own)]
        axes.plot(severities, percent, line, color=colour, linewidth=0.9, label=name)
    means = [clean, *corruptions["mean_by_severity"]]
    label = f"mean of {len(corruptions['mean_over'])}"
    _bars(axes, severities, means, label=label, color="black", marker="o", linewidth=2.2)
    axes.set_xticks(severities, ["clean", *map(str, severities[1:])])
    axes.set_xlabel(f"severity of the corruption ({corruptions['sources'][0]['source']})")
    axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5))


def _bars(axes: Any, x: list[float], points: list[Record], **style: Any) -> None:
    """Accuracies in percent with their intervals."""
    percent = [100 * point["accuracy"] for point in points]
    below = [100 * (point["accuracy"] - point["interval"][0]) for point in points]
    above = [100 * (point["interval"][1] - point["accuracy"]) for point in points]
    # Of 0 and of all images, one end of the interval is the accuracy itself, but for rounding.
    errors = [[max(0.0, value) for value in side] for side in (below, above)]
    axes.errorbar(x, percent, errors, capsize=2, **style)

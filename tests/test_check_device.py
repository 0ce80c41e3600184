"""The check of a new machine, as small as it goes: what it says when all is right, and when not."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import Child, script

from convnorm import filtering, functional
from convnorm.experiment.run import loop
from gan.trainer import Trainer as GanTrainer

PARTS = ["runs", "layer", "attacks", "steps", "speed", "layers", "filter"]


def check(folder: Path, *argv: str, function: Any = script) -> tuple[int, str, dict[str, Any]]:
    """Run the tiny check in a process of its own; its exit code, output and record."""
    args = ("check_device.py", "--device", "cpu", "--tiny", "--out", str(folder / "out"), *argv)
    code, output = Child(folder / "output.txt", function, *args).end()
    file = folder / "out" / "check_device.json"
    assert file.is_file(), output
    return code, output, json.loads(file.read_text())


def test_all_is_right_here(tmp_path):
    code, output, record = check(tmp_path)
    assert code == 0, output
    assert list(record["parts"]) == PARTS
    for name, part in record["parts"].items():
        assert part["status"] == ("skipped" if name == "steps" else "ok"), output
        assert all(case["line"] for case in part["cases"].values())
    assert "a CPU" in record["parts"]["steps"]["why"]
    assert record["benchmark"] is False
    assert "no benchmark" in output
    for case in record["parts"]["runs"]["cases"].values():
        assert case["numbers"] == {"steps": 4, "resumed_at": 2, "different": []}
    for case in record["parts"]["attacks"]["cases"].values():
        assert 0 < case["numbers"]["fooled"] < case["numbers"]["images"]
    speed = record["parts"]["speed"]["cases"]["GAN"]["numbers"]
    assert speed["none"]["ratio"] == 1 < speed["convnorm"]["ratio"]
    *_, skipped, _, _, _, written = output.splitlines()
    assert skipped.startswith("steps:   skipped, 6 of 6 cases skipped")
    assert written.startswith("written: ")


def wrong_gain(*argv: str) -> None:
    """By 1 %, where the device computes in float32."""
    original = functional.spectral_gain

    def spectral_gain(*args: Any) -> torch.Tensor:
        gain = original(*args)
        return gain if gain.dtype == torch.float64 else 1.01 * gain

    functional.spectral_gain = spectral_gain
    script(*argv)


def wrong_fused_filter(*argv: str) -> None:
    original = filtering.fused_filter
    filtering.fused_filter = lambda *args: 1.01 * original(*args)
    script(*argv)


def forgetful_resume(*argv: str) -> None:
    """A GAN's goes on without what Adam has gathered; a classifier's begins anew.

    Which ends with the right weights too, but has lost the work.
    """
    original = loop.resume

    def resume(trainer: loop.Trainer, *args: Any) -> Any:
        if not isinstance(trainer, GanTrainer):
            return (args[-1],)
        segments = original(trainer, *args)
        trainer.state.optim_g.state.clear()
        return segments

    loop.resume = resume
    script(*argv)


def repeated_gains(*argv: str) -> None:
    """In every forward pass of an attack."""
    functional.computed_once_a_step = lambda function, tensor, *args, **_: function(tensor, *args)
    script(*argv)


@pytest.mark.parametrize(
    ("defect", "part", "found"),
    [
        (wrong_gain, "layer", {"3 8 3 1 1 8 full": "fp32: 1.0e-02, allowed is 1e-04"}),
        (
            forgetful_resume,
            "runs",
            {
                "GAN spectral, averaged": "differ after a resume",
                "classifier convnorm, free, bfloat16": "4 steps after the resume at 2 of 4",
            },
        ),
        (repeated_gains, "attacks", {"pgd on convnorm": "gains computed for 4 layers"}),
    ],
)
def test_a_defect_fails_its_part_and_stops_no_other(defect, part, found, tmp_path):
    code, output, record = check(tmp_path, "--parts", part, "filter", function=defect)
    assert code == 1, output
    failed = record["parts"][part]
    assert failed["status"] == "failed"
    for case, words in found.items():
        assert failed["cases"][case]["status"] == "failed"
        assert words in failed["cases"][case]["line"]
    assert f"{part + ':':9}FAILED, " in output
    assert record["parts"]["filter"]["status"] == "ok"


def test_a_wrong_fused_filter_fails(tmp_path):
    """By 1 %, and its gradient in the direction of the output by twice that."""
    code, output, record = check(tmp_path, "--parts", "filter", function=wrong_fused_filter)
    assert code == 1, output
    cases = record["parts"]["filter"]["cases"]
    assert "ieee: 2.0e-02, allowed is 1e-05" in cases["fused, 6 x 5, ieee"]["line"]
    assert cases["batch 4, 6 x 6"]["status"] == "ok"


def test_what_there_is_no_time_for_is_said_to_be_skipped(tmp_path):
    code, output, record = check(tmp_path, "--seconds", "1e-9")
    assert code == 0
    for name in PARTS:
        part = record["parts"][name]
        assert part["status"] == "skipped"
        assert "no time left" in part["why"]
    assert output.count(": skipped: no time left") == sum(
        len(part["cases"]) for part in record["parts"].values()
    )

"""Lengths of perturbations: every way to write one is the same number, and no other unit passes."""

import math
from pathlib import Path

import pytest
from runs import tiny_classifier

from classification.config import ClassifierConfig
from classification.named_attacks import Budget
from classification.radii import euclidean_norm
from convnorm.experiment.config import parse, read, to_yaml
from convnorm.experiment.errors import InputError

# What is no number of grey levels from 0.5 to 255: radii for pixels in [0, 1], other units,
# numbers out of range, and what is no number at all.
NO_LEVELS = (
    *(8 / 255, 0.0314, "0.0314", "0.0314/255", 0, "0", 0.49, "1e-3", "0.49/255"),
    *("8/256", "8/2550", "3%", "8px", "0x8", "8/255/255", "/255", "8 8", "1.2.3", "..", ""),
    *(-8, "-8", "-8/255", 255.5, "256/255", "300", 10**400, "1e400"),
    *(math.nan, math.inf, -math.inf, "nan", "inf", True, None, [8]),
)


@pytest.mark.parametrize("value", [8, 8.0, "8", "8.0", " 8 ", "8/255", "8 / 255", "8e0/255"])
def test_levels_are_the_same_however_they_are_written(value):
    assert Budget(value) == Budget(8.0)
    assert Budget(step_size=value) == Budget(step_size=8.0)
    changes = {"adversary.eps": value, "adversary.step_size": value}
    assert to_yaml(tiny_classifier(changes)) == to_yaml(
        tiny_classifier({"adversary.eps": 8.0, "adversary.step_size": 8.0})
    )


@pytest.mark.parametrize("value", NO_LEVELS, ids=lambda value: repr(value)[:12])
def test_what_is_in_another_unit_is_refused_with_what_to_write(value):
    """It would be no attack, or one that nothing withstands, and its accuracy looks like any."""
    written = "is not allowed; expected grey levels of 255, from 0.5 to 255: write 8 or 8/255"
    if value in (0.49, "0.49/255"):
        written = written.replace("write 8 or 8/", "write 125 or 125/")
    with pytest.raises(InputError) as error:
        Budget(value)
    assert str(error.value).startswith("eps: ")
    assert written in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 160
    if value is not None:
        with pytest.raises(InputError, match=r"step_size: .* is not allowed; expected grey levels"):
            Budget(step_size=value)


@pytest.mark.parametrize("value", ["8/256", "0.0314", "nan", "-8", "3%", "1e-3"])
@pytest.mark.parametrize("key", ["adversary.eps", "adversary.step_size"])
def test_a_config_refuses_the_same_in_a_file_and_on_the_command_line(tmp_path, key, value):
    message = f"{key}: .* is not allowed; expected grey levels of 255"
    file = tmp_path / "config.yaml"
    file.write_text(f"adversary: {{{key.split('.')[1]}: {value}}}")
    with pytest.raises(InputError, match=message):
        read(ClassifierConfig, file)
    with pytest.raises(InputError, match=message):
        parse(ClassifierConfig, "classification", "digits_convnorm", [f"--{key}={value}"])


def test_a_fraction_in_a_file_or_on_the_command_line_is_kept_as_levels(tmp_path):
    """Otherwise the same run would have two configs and could not be resumed."""
    file = tmp_path / "config.yaml"
    file.write_text("adversary: {eps: 8/255, step_size: 2 / 255}")
    assert read(ClassifierConfig, file) == read_plain(tmp_path)
    words = ["--cfg", str(file), "--adversary.eps=24/255", "--adversary.step_size=null"]
    config, _ = parse(ClassifierConfig, "classification", "digits_convnorm", words)
    assert (config.adversary.eps, config.adversary.step_size) == (24.0, None)


def read_plain(folder: Path) -> ClassifierConfig:
    file = folder / "plain.yaml"
    file.write_text("adversary: {eps: 8.0, step_size: 2.0}")
    return read(ClassifierConfig, file)


def test_a_step_that_is_longer_than_the_ball_is_wide_is_refused():
    """From wherever it starts, every step ends in a corner: PGD would be weaker than it looks."""
    assert Budget(eps=4, step_size=8).step_size == 8
    with pytest.raises(InputError, match=r"step_size: 8.5 is not allowed; expected at most 8 grey"):
        Budget(eps=4, step_size=8.5)
    with pytest.raises(InputError, match=r"adversary.step_size: 9/255 .* at most 8 grey levels"):
        tiny_classifier({"adversary.eps": 4, "adversary.step_size": "9/255"})


@pytest.mark.parametrize(("value", "norm"), [(0.5, 0.5), ("0.5", 0.5), ("128/255", 128 / 255)])
def test_a_euclidean_norm_is_for_pixels_up_to_1(value, norm):
    assert euclidean_norm(value, "eps_l2") == Budget(eps_l2=value).eps_l2 == norm


@pytest.mark.parametrize("value", [0, -1, 0.003, "0.5/255", math.nan, "inf", 10**400, "x", None])
def test_what_is_no_euclidean_norm_is_refused(value):
    with pytest.raises(InputError, match=r"eps_l2: .*: write 0.5 or 128/255"):
        Budget(eps_l2=value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((f"adversary.{key}", value) for key in ("steps", "repeats") for value in (0, 1001)),
        *(("adversary.beta", value) for value in (-1.0, 1e30, math.inf, math.nan)),
    ],
)
def test_other_numbers_of_an_adversary_have_bounds_that_are_told(key, value):
    with pytest.raises(InputError, match=rf"{key}: .* is not allowed; expected \d to 1000"):
        tiny_classifier({key: value})

"""The measurement of speed: every part as small as it goes, what becomes of its numbers, its file.

No test looks at how long anything took: a busy machine must not fail one.
"""

import json
import sys
import time
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import ROOT, Child

sys.path.append(str(ROOT / "scripts"))

import bench_speed
from convnorm import ConvNorm2d
from convnorm.experiment.data import Images
from convnorm.experiment.errors import InputError
from convnorm.filtering import circular_filter
from convnorm.functional import spectral_gain
from gan.distances import FeatureSet, frechet_distance
from speed import layer, record
from speed.bench import Spread, ratio, spread
from speed.clock import Timing, in_turn
from speed.copies import Copies, copies
from speed.memory import peak_bytes
from speed.peers import OneByOne, PlainLoop
from speed.score import sqrtm_distance
from speed.split import PLACES, split
from speed.table import ROWS, table

CPU = torch.device("cpu")
NAMES = ["layer", "filter", "gan", "cls", "score", "growth"]


def bench(monkeypatch: pytest.MonkeyPatch, *argv: str) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_speed.py", *argv])
    bench_speed.main()


def tiny(part: str, file: Path) -> tuple[str, ...]:
    options = ("--device", "cpu", "--threads", "1", "--repeats", "1", "--json", str(file))
    return (part, "--tiny", *options)


def spreads(found: Any) -> list[dict[str, float]]:
    """Everything in a record that was measured in rounds."""
    if not isinstance(found, dict | list):
        return []
    if isinstance(found, dict) and found.keys() == asdict(spread([1.0])).keys():
        return [found]
    inner = found.values() if isinstance(found, dict) else found
    return [each for part in inner for each in spreads(part)]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of results with all parts, each written beside those before."""
    folder = tmp_path_factory.mktemp("bench")
    file = folder / "speed_cpu.json"
    # Its parts start processes from the server that the tests' children come from.
    assert Child(folder / "output.txt", print).end()[0] == 0
    with pytest.MonkeyPatch.context() as patch:
        for part in NAMES:
            bench(patch, *tiny(part, file))
    return file


@pytest.fixture
def parts(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text())["parts"]


def test_every_part_stands_in_the_file_with_what_it_was_measured_on(parts):
    assert list(parts) == NAMES == list(bench_speed.PARTS)
    for name, part in parts.items():
        assert part["command"].startswith(f"python scripts/bench_speed.py {name} --tiny")
        assert (part["device"], part["tiny"], part["torch"]) == ("cpu", True, torch.__version__)
        assert part["hardware"].endswith("1 thread")
        found = spreads(part)
        assert found
        for each in found:
            assert 0 <= each["least"] <= each["median"] <= each["most"]
            assert each["n"] >= 1


def test_the_layer_is_measured_in_every_mode(parts):
    for modes in parts["layer"]["geometric_means"].values():
        assert list(modes) == list(layer.MODES)
        assert all(set(ratios) == set(layer.RATIOS) for ratios in modes.values())
    for each in parts["layer"]["layers"]:
        assert all(most > 0 for most in each["peak_bytes"].values())


def test_an_update_is_measured_for_the_kinds_and_taken_apart(parts):
    runs = parts["gan"]["updates"]["sngan_cnn"]["runs"]
    assert {"none", "convnorm", "convnorm native", "oni", "plain loop, spectral"} <= set(runs)
    assert runs["none"]["ratio"]["median"] == 1
    for name, shares in parts["gan"]["split"].items():
        assert sum(shares.values()) == pytest.approx(1)
        assert min(shares[place] for place in ("networks", "optimizer", "rest")) > 0
        assert (shares["filter"] > 0) == name.startswith("convnorm")
        assert (shares["gains"] > 0) == (name != "none")
    casts = {name: found["contiguous"]["casts"] for name, found in parts["gan"]["copies"].items()}
    assert 0 < casts["none"] < casts["convnorm"]  # its filter takes float32
    assert 0 < parts["gan"]["evaluation"]["share"] < 1


def test_pgd_meets_a_network_that_withstands_it_in_part(parts):
    for attacked in parts["cls"]["pgd20"].values():
        assert 0 < attacked["robust"]["ours"] < 1
        assert attacked["eps"] < 0.5


def test_the_goals_alone_are_a_part_of_all(file, parts, tmp_path, monkeypatch):
    few = tmp_path / "few.json"
    bench(monkeypatch, *tiny("score", few), "--goals")
    measured = json.loads(few.read_text())["parts"]["score"]
    assert measured.keys() < parts["score"].keys()
    assert "frechet" in measured


def test_the_table_is_made_from_the_file(file, parts, monkeypatch, capsys):
    bench(monkeypatch, "table", "--json", str(file))
    printed = capsys.readouterr().out
    assert "not measured" not in printed
    assert "tiny, which is no benchmark" in printed
    means = parts["layer"]["geometric_means"]["all"]["training"]["native / conv_bn"]
    line = f"| `native` / conv + BN, training step, all shapes | {Spread(**means)} | <= 1.30 |"
    assert line in printed.splitlines()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_table_says_what_is_missing(device):
    about = {"device": device, "hardware": "H", "torch": "2", "tiny": False}
    made = table({"layer": about})
    lines = [line for line in made.splitlines() if "not measured" in line]
    assert len(lines) == sum(device in row.goals for row in ROWS)
    assert made.endswith("layer: H, torch 2.")


ABOUT = {"device": "cpu", "hardware": "one", "tiny": False, "torch": "2.11"}
ONE = record.Identity("cpu", "one", False)


@pytest.mark.parametrize(
    "identity",
    [
        record.Identity("cuda", "one", False),
        record.Identity("cpu", "two", False),
        record.Identity("cpu", "one", True),
    ],
)
def test_parts_of_two_machines_do_not_mix(identity, tmp_path):
    """Their ratios would stand in one table, as if they could be compared."""
    file = tmp_path / "a.json"
    record.write(file, {"layer": ABOUT})
    before = file.read_bytes()
    with pytest.raises(InputError, match="has 'layer' of cpu"):
        record.parts_beside(file, "gan", identity)
    assert record.parts_beside(file, "layer", identity) == {}  # measured anew, it is replaced
    assert record.parts_beside(file, "gan", ONE) == {"layer": ABOUT}
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", "{", '{"parts": []}', '{"parts": {"layer": 3}}', '{"parts": {"layer": {}}}'],
)
def test_a_file_of_something_else_is_left_alone(content, tmp_path, monkeypatch):
    file = tmp_path / "a.json"
    file.write_text(content)
    for argv in (tiny("filter", file), ("table", "--json", str(file))):
        with pytest.raises(InputError, match=r"a\.json is not a file that bench_speed\.py --json"):
            bench(monkeypatch, *argv)
    assert file.read_text() == content


def test_a_ratio_that_is_none_is_named():
    parts = {"score": {**ABOUT, "frechet": {"scipy / ours": {"median": "x"}}}}
    with pytest.raises(InputError, match=r"score\.frechet\.scipy / ours is .*; expected a ratio"):
        table(parts)


# How times are taken.


def test_runs_take_turns():
    calls = []
    runs = {name: lambda name=name: calls.append(name) for name in ("a", "b")}
    found = in_turn(runs, CPU, rounds=3, calls=2, warm_up=1)
    assert "".join(calls) == "ab" + 3 * "aabb"
    assert [len(times) for times in found.values()] == [3, 3]


@pytest.mark.parametrize(("least", "rounds"), [(1, 1), (2, 2), (9, 5)])
def test_no_round_begins_late(least, rounds):
    found = in_turn({"a": lambda: None}, CPU, rounds=5, least=least, until=time.monotonic() - 1)
    assert len(found["a"]) == rounds


def test_a_ratio_is_taken_within_a_round():
    """A machine that is twice as slow for a while changes no ratio."""
    above, below = ([Timing(ms * slow, 0) for slow in (1, 2, 4)] for ms in (6, 2))
    assert ratio(above, below) == Spread(3, 3, 3, 3)
    assert spread([3, 1, 2, 10]) == Spread(2.5, 1, 10, 4)


def test_casts_and_changes_of_layout_are_counted_in_both_directions():
    x = torch.ones(2, 3, 4, 5, requires_grad=True)

    def cast():
        x.bfloat16().sum().backward()

    def turned():
        x.contiguous(memory_format=torch.channels_last).sum().backward()

    assert copies(cast) == Copies(casts=2, cast_elements=2 * 120)
    assert copies(turned) == Copies(layouts=1, layout_elements=120)
    assert copies(x.sum) == Copies()


def test_the_peak_is_of_all_tensors_at_a_time():
    def run() -> None:
        first = torch.zeros(2**18)  # 1 MiB
        second = first + 1
        del first
        second + 1

    assert peak_bytes(run, CPU) == pytest.approx(2**21, rel=0.01)


@pytest.fixture
def second_an_operation(monkeypatch):
    ticks = count()
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))


@pytest.mark.parametrize("batch", [1, 8], ids=["fft", "matrix"])
def test_a_gradient_belongs_where_its_operation_does(batch, second_an_operation):
    gain = spectral_gain(torch.randn(2, 2, 3, 3), (8, 8))
    x = torch.randn(batch, 2, 8, 8)
    direction = torch.randn(batch, 2, 8, 8)

    def run() -> None:
        leaf = x.clone().requires_grad_()
        torch.autograd.grad(circular_filter(leaf, gain), leaf, direction)

    shares = split(run, CPU)
    assert shares["filter"] > 0.8  # the clone is the rest
    assert shares["gains"] == shares["networks"] == shares["optimizer"] == 0


def test_every_place_of_a_layer_is_found(second_an_operation):
    conv = ConvNorm2d(3, 4, 3, affine=False, batch_norm=False)
    optimizer = torch.optim.SGD(conv.parameters(), lr=0.1)
    x = torch.randn(2, 3, 8, 8)

    def run() -> None:
        optimizer.zero_grad()
        conv(x).square().sum().backward()
        optimizer.step()

    assert all(split(run, CPU)[place] > 0 for place in PLACES)


# What is held against ours does the same work.


def test_scipys_distance_is_ours():
    sets = torch.randn(2, 40, 5, generator=torch.Generator().manual_seed(0))
    ours = frechet_distance(*map(FeatureSet, sets))
    assert sqrtm_distance(*sets.double().numpy()) == pytest.approx(ours, rel=1e-6)


def test_the_plain_loop_trains_the_same_networks(tmp_path):
    from convnorm.experiment.data import load_images
    from device_checks.part import Setup
    from device_checks.workloads import gan_config

    config = gan_config(Setup(CPU, "", True, tmp_path, 0.0), "none")
    images = load_images(config.data)
    loop = PlainLoop(config, images, CPU)
    networks = (loop.generator, loop.discriminator)
    # Not biases: that of the last layer has no gradient while all logits are within the margin.
    weights = [p for net in networks for p in net.parameters() if p.dim() > 1]
    before = [weight.clone() for weight in weights]
    loop()
    assert not any(map(torch.equal, before, weights))
    plain = [module for module in loop.discriminator.modules() if hasattr(module, "stride")]
    assert all(hasattr(module, "parametrizations") for module in plain)
    assert loop.log.keys() == {"loss_d", "d_real", "d_fake", "loss_g"}


def test_one_image_after_the_other_is_what_ours_are():
    pixels = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
    made = OneByOne(Images(pixels, torch.zeros(2, dtype=torch.long), ("a",)))
    for image, found in zip(pixels, (made[0], made[1]), strict=True):
        torch.testing.assert_close(found, image / 127.5 - 1)

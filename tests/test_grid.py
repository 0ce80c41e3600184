"""The grid: every run that is meant, no other, and one clear line for whatever is wrong."""

import re

import jsonargparse
import pytest
import yaml
from runs import ROOT
from toy import toy

from classification.benchmark import CLASSIFICATION
from convnorm.experiment.benchmark.loading import load
from convnorm.experiment.benchmark.plan import check
from convnorm.experiment.config import CONFIGS, parse
from convnorm.experiment.errors import InputError
from gan.benchmark import GAN
from gan.config import GanConfig

PIPELINES = {"gan": GAN, "classification": CLASSIFICATION}


def test_every_combination_at_every_seed_seed_by_seed(tmp_path):
    axes = {"kind": ["a", "b"], "length": {"short": {"steps": 2}, "long": {"steps": 8}}}
    compare = {"axis": "kind", "against": "b"}
    benchmark = toy(tmp_path, axes=axes, seeds=[3, 1], compare=compare)
    found = [(run.seed, run.config.kind, run.config.steps) for run in benchmark.runs]
    cells = [("a", 2), ("a", 8), ("b", 2), ("b", 8)]
    assert found == [(seed, *cell) for seed in (3, 1) for cell in cells]
    assert benchmark.runs[1].name == "a / long, seed 3"
    assert benchmark.runs[1].folder == tmp_path / "out" / "a-long" / "seed3"
    assert len({run.folder for run in benchmark.runs}) == 8
    assert all(run.config.seed == run.seed for run in benchmark.runs)


def test_numbers_are_named_by_their_field(tmp_path):
    axes = {"steps": [2, 4], "kind": ["good"]}
    benchmark = toy(tmp_path, axes=axes)
    assert benchmark.runs[0].cell.name == "steps 2 / good"


def test_a_number_may_be_compared_against(tmp_path):
    changes = {"axes": {"steps": [2, 4]}, "compare": {"axis": "steps", "against": 4}}
    assert toy(tmp_path, **changes).grid.reference == "4"


def test_set_is_part_of_every_run_and_of_its_command(tmp_path):
    benchmark = toy(tmp_path, set={"steps": 7})
    assert {run.config.steps for run in benchmark.runs} == {7}
    assert all("--steps=7" in run.arguments for run in benchmark.runs)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"axes": {"kid": ["a"]}, "compare": {"axis": "kid", "against": "a"}}, "kid: no such key"),
        ({"axes": {}}, "axes: {} is not allowed"),
        ({"axes": {"kind": []}}, "axes.kind: [] is not allowed; expected one value or more"),
        ({"axes": {"kind": ["good", "good"]}}, "values that do not repeat"),
        ({"axes": {"kind": "good"}}, "axes.kind: 'good' is not allowed; expected a list"),
        ({"axes": {"kind": {"good": 3}}}, "axes.kind.good: 3 is not allowed"),
        ({"axes": {"kind": ["good"], "steps": ["many"]}}, "steps: many is not allowed"),
        ({"seeds": [0, 0]}, "seeds: [0, 0] is not allowed"),
        ({"seeds": 3}, "seeds: 3 is not allowed; expected a list of int"),
        ({"seeds": ["a"]}, "expected a list of int"),
        ({"attacks": "fgsm"}, "attacks: fgsm is not allowed; expected a list of str"),
        ({"axes": [1]}, "axes: [1] is not allowed; expected keys and values"),
        ({"axes": {"kind": ["good", "/"]}}, "axes: '/' is not allowed; expected labels that can"),
        ({"axes": {"kind": ["good", "a\rb"]}}, "axes: 'a\\rb' is not allowed; expected labels"),
        ({"axes": {"kind": ["good", "a\tb"]}}, "axes: 'a\\tb' is not allowed; expected labels"),
        ({"axes": {"kind": ["good", "logs"]}}, "axes: 'logs' is not allowed"),
        ({"axes": {"kind": ["good", "x" * 200]}}, "expected labels that can be the name of a"),
        ({"seeds": []}, "seeds: [] is not allowed"),
        ({"seeds": [-1]}, "seeds: [-1] is not allowed"),
        ({"set": {"stepz": 3}}, "stepz: no such key; expected steps"),
        ({"set": {"kind": "x"}}, "axes.kind.good: 'kind' is not allowed"),
        ({"set": {"seed": 3}}, "axes or set: 'seed' is not allowed"),
        *(
            ({"set": {key: ""}}, f"{shown}: no such key; expected ")
            for key, shown in [("print_config", "print_config"), ("help", "help"), ("h", "h")]
        ),
        ({"set": {"": 3}}, "'': no such key"),
        ({"set": {"a=b": 3}}, "a=b: no such key"),
        ({"set": {"kind.x": 3}}, "axes or set: 'kind.x' is not allowed; expected kind alone"),
        ({"set": {3: 3}}, "axes or set: 3 is not allowed; expected the name of a field"),
        ({"set": {"run_dir": "x"}}, "axes or set: 'run_dir' is not allowed"),
        ({"set": {"device": "cpu"}}, "axes or set: 'device' is not allowed"),
        ({"seeds": [10**24]}, "seeds: [1000000000000000000000000] is not allowed; expected 0 to"),
        ({"seeds": [True]}, "seeds"),
        ({"seeds": list(range(10_001))}, "axes and seeds: 20002 runs; expected at most 10000"),
        (
            {
                "axes": {f"a{i}": list(range(100)) for i in range(20)},
                "compare": {"axis": "a0", "against": 0},
            },
            f"axes and seeds: {2 * 100**20} runs; expected at most 10000",
        ),
        ({"axes": {"kind": ["good", "\u00e4" * 60]}}, "expected labels that can be the name of a"),
        ({"set": {"overwrite": True}}, "axes or set: 'overwrite' is not allowed"),
        ({"compare": {"axis": "size", "against": "good"}}, "compare.axis: 'size'"),
        ({"compare": {"axis": "kind", "against": "best"}}, "compare.against: 'best'"),
        (
            {"score": {"name": "FDD"}},
            "score: 'FDD' is not allowed; expected a final score of 'good': FD",
        ),
        (
            {"set": {"steps": 1}, "score": {"name": "FD", "at": "selected"}},
            "expected a selected score of 'good': there is none",
        ),
        ({"score": {"name": "FD", "at": "best"}}, "score.at: best is not allowed"),
        ({"attacks": ["fgsm", "fgsm"]}, "attacks: ['fgsm', 'fgsm'] is not allowed"),
        ({"base": "nowhere"}, "nowhere: no such file"),
        ({"pipeline": "gam"}, "pipeline: gam is not allowed; expected one of gan, classification"),
        ({"colour": 3}, "colour: no such key"),
        (
            {
                "axes": {"size": {"one": {"steps": 4}, "two": {"steps": 4}}},
                "compare": {"axis": "size", "against": "one"},
            },
            "axes: 'one' and 'two' are the same runs",
        ),
        (
            {
                "axes": {"size": {"a b": {"steps": 4}, "a-b": {"steps": 5}}},
                "compare": {"axis": "size", "against": "a b"},
            },
            "axes: 'a b' and 'a-b' are the same runs",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line_that_names_the_file(tmp_path, changes, expected):
    with pytest.raises(InputError, match=re.escape(expected)) as error:
        toy(tmp_path, **changes)
    assert str(tmp_path / "toy.yaml") in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_of_another_config_is_named_before_anything_is_trained(tmp_path):
    benchmark = toy(tmp_path)
    folder = benchmark.runs[2].folder
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("kind: good\nsteps: 9\nseed: 1\n")
    check(benchmark)  # nothing has begun there: the config may be replaced
    (folder / "log.jsonl").touch()
    with pytest.raises(InputError, match=f"{folder} holds .* \\(steps: 9 there, 4 here\\)"):
        check(benchmark)


@pytest.mark.parametrize(
    ("name", "runs"),
    [
        ("digits_gan", 12),
        ("digits_cls", 24),
        ("digits_recipes", 24),
        ("cifar10_small", 24),
        ("cifar10_small_gain", 30),
        ("cifar10_small_noise", 30),
        ("cifar10_small_data", 30),
        ("cifar10_small_free", 15),
        ("cifar10_small_batch_norm", 27),
        ("cifar10_small_rate", 4),
        ("cifar10_gain", 90),
        ("cifar10_competitors", 33),
        ("cifar10_no_normalizer", 18),
        ("cifar10_scarce", 54),
        ("cifar10_sngan", 24),
        ("stl10_sngan", 15),
        ("cifar10_sngan_settings", 36),
        ("cifar10_free", 24),
        ("cifar10_noise", 36),
    ],
)
def test_the_shipped_grids_are_complete(name, runs):
    """Catches a field that a grid names and the pipeline no longer has."""
    benchmark = load(name, None, PIPELINES)
    assert benchmark.grid.num_runs == runs
    assert len(benchmark.runs) == (0 if benchmark.wanted else runs)


@pytest.mark.parametrize(
    ("grid", "changes", "expected"),
    [
        (
            "digits_gan",
            {"score": {"name": "FID"}},
            "final score of 'convnorm': FD (digits), FD c",
        ),
        (
            "digits_gan",
            {"set": {"score.select": "none"}, "score": {"name": "FD (digits)", "at": "selected"}},
            "there is none",
        ),
        ("digits_gan", {"attacks": ["fgsm"]}, "attacks: fgsm is not allowed; expected none"),
        ("digits_gan", {"num": 100}, "num: 100 is not allowed; expected null for GANs"),
        ("cifar10_sngan", {"set": {}}, "a final score of 'none': there is none"),
        ("digits_cls", {"attacks": ["fgsm"]}, "score: 'pgd20' is not allowed"),
        ("digits_cls", {"attacks": ["pgd20", "fsgm"]}, "no attack is named 'fsgm'"),
        (
            "digits_cls",
            {"axes": {"normalizer.kind": ["batch", "convnorm"], "adversary.eps": [8, 16]}},
            "'batch / eps 16' would not be measured as the first cell is (adversary.eps: 8.0 there",
        ),
        (
            "digits_cls",
            {"set": {"split.validation": 0.0}, "score": {"name": "pgd20", "at": "selected"}},
            "there is none",
        ),
    ],
)
def test_a_score_that_no_run_will_have_is_refused_before_the_first(
    tmp_path, grid, changes, expected
):
    path = tmp_path / "grid.yaml"
    shipped = yaml.safe_load((CONFIGS / "benchmark" / f"{grid}.yaml").read_text())
    path.write_text(yaml.safe_dump(shipped | changes, sort_keys=False))
    with pytest.raises(InputError, match=re.escape(expected)):
        load(str(path), None, PIPELINES)


def test_the_grid_that_the_documentation_shows_is_one(tmp_path):
    page = (ROOT / "docs/benchmarks.md").read_text()
    (block,) = re.findall("```yaml\n(.+?)```", page, re.DOTALL)
    path = tmp_path / "grid.yaml"
    path.write_text(block)
    assert len(load(str(path), None, PIPELINES).runs) == 24


@pytest.mark.parametrize("name", ["cifar10_small", "cifar10_sngan_settings", "cifar10_free"])
def test_a_run_is_planned_with_the_config_that_its_command_gives(name):
    benchmark = load(name, None, PIPELINES)
    pipeline = benchmark.pipeline
    for run in benchmark.runs[:: len(benchmark.runs) // 3]:
        assert parse(pipeline.config, pipeline.name, None, run.arguments)[0] == run.config


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"optim.lr": 1}, 1.0),
        ({"optim.lr": 1e-05}, 1e-05),
        ({"optim.lr": "1e-3"}, 1e-3),
        ({"train.flip": True}, True),
        ({"score.weights": "3"}, "3"),
        ({"score.weights": ""}, ""),
        ({"model.options": {"generator_width": 3}}, {"generator_width": 3}),
        ({"model.options.generator_width": 3}, {"generator_width": 3, "discriminator_width": 32}),
    ],
)
def test_values_are_those_of_the_command_line(tmp_path, settings, expected):
    (key,) = settings
    shipped = yaml.safe_load((CONFIGS / "benchmark" / "digits_gan.yaml").read_text())
    path = tmp_path / "grid.yaml"
    axes = {"normalizer": {"convnorm": shipped["axes"]["normalizer"]["convnorm"]}}
    path.write_text(yaml.safe_dump({**shipped, "axes": axes, "set": settings}))
    run = load(str(path), None, PIPELINES).runs[0]
    group, name = key.removesuffix(".generator_width").split(".")
    value = getattr(getattr(run.config, group), name)
    assert (value, type(value)) == (expected, type(expected))
    assert parse(GanConfig, "gan", None, run.arguments)[0] == run.config


def test_thousands_of_cells_are_planned_without_parsing_each(tmp_path, monkeypatch):
    """A command line takes 0.1 s to parse: 6,000 would take ten minutes."""
    parsed = []
    original = jsonargparse.ArgumentParser.parse_args

    def parse_args(parser, args):
        parsed.append(args)
        return original(parser, args)

    monkeypatch.setattr(jsonargparse.ArgumentParser, "parse_args", parse_args)
    axes = {"steps": list(range(1, 1001)), "kind": ["good", "bad"]}
    benchmark = toy(tmp_path, axes=axes, seeds=[0])
    assert len(benchmark.runs) == 2000
    assert len(parsed) <= 2


def test_an_unknown_grid_lists_those_that_there_are():
    with pytest.raises(InputError, match=r"configs/benchmark has cifar10_.*digits_gan"):
        load("digit_gan", None, PIPELINES)

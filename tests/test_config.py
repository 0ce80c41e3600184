"""Configs: what is shipped loads, what is wrong is named in one line."""

import math
import re
from dataclasses import asdict
from pathlib import Path
from typing import get_args

import pytest
from runs import ALONE, TINY, arguments, tiny

import classification.networks
import gan.networks
from classification.config import ClassifierConfig
from convnorm.experiment.config import CONFIGS, RunOptions, from_dict, options_of, parse, to_yaml
from convnorm.experiment.config import build as build_config
from convnorm.experiment.config.fields import types_of
from convnorm.experiment.config.yaml_text import LARGEST
from convnorm.experiment.data import load_images
from convnorm.experiment.errors import InputError, exit_code
from convnorm.experiment.run.loop import take_step
from gan.config import GanConfig
from gan.models import build
from gan.trainer import Trainer

SHIPPED = sorted(path.stem for path in (CONFIGS / "gan").glob("*.yaml"))


def read(*argv: str) -> GanConfig:
    return parse(GanConfig, "gan", "sngan_none", list(argv))[0]


@pytest.fixture
def file(tmp_path):
    """Write a config file and return its path."""

    def write(text: str) -> str:
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return str(path)

    return write


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_config_loads_and_builds(name):
    config = read("--cfg", name, "--model.options.generator_width=4")
    assert build(config, channels=1 if config.data.name == "digits" else 3, num_classes=10)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_config_trains(name):
    """On the digits, with narrow networks."""
    kept = ("model.arch", "score.protocol", "score.select")
    small = {key: value for key, value in TINY.items() if key not in kept}
    config = read("--cfg", name, *(f"--{key}={value}" for key, value in small.items()))
    trainer = Trainer(config, load_images(config.data), ALONE)
    for _ in range(2):
        take_step(trainer)
    weights = [*trainer.generator.parameters(), *trainer.discriminator.parameters()]
    assert all(weight.isfinite().all() for weight in weights)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_config_says_what_it_shows(name):
    assert (CONFIGS / "gan" / f"{name}.yaml").read_text().startswith("# ")


@pytest.mark.parametrize(
    ("argv", "key", "value", "expected"),
    [
        (
            ["--model.options.generator_widht", "4"],
            "model.options.generator_widht",
            "",
            "model.options.generator_width",
        ),
        (
            ["--model.generator_width", "4"],
            "model.generator_width",
            "",
            "model.options.generator_width",
        ),
        (["--modle.arch", "dcgan"], "modle.arch", "", "model.arch"),
        (["--frobnicate=3"], "frobnicate", "", "normalizer"),
        (["--see", "4"], "see", "", "seed"),  # no abbreviations
        (
            ["--model.options.generator_width", "1.5"],
            "model.options.generator_width",
            "1.5",
            "int",
        ),
        (["--model.options", "4"], "model.options", "4", "keys and values"),
        (["--steps", "many"], "steps", "many", "int"),
        (["--steps="], "steps", "nothing", "int"),
        (["--model.z_dim", "null"], "model.z_dim", "None", "int"),
        (["--steps", "-3"], "steps", "-3", "1 to 1000000000"),
        (["--seed", "-1"], "seed", "-1", "0 to 9223372036854775807"),
        (["--optim.lr", "0"], "optim.lr", "0.0", "more than 0 and at most 1e+30"),
        (["--optim.beta1", "1"], "optim.beta1", "1.0", "0 or more and less than 1"),
        (["--train.ema_decay", "1"], "train.ema_decay", "1.0", "0 or more and less than 1"),
        (["--train.flip", "maybe"], "train.flip", "maybe", "bool"),
        (["--train.n_dis", "0"], "train.n_dis", "0", "1 to 1000"),
        (["--log.every", "0"], "log.every", "0", "1 to 1000000000"),
        (["--loss.r1", "-1"], "loss.r1", "-1.0", "0 to 1000000"),
        (["--normalizer.kind", "bath"], "normalizer.kind", "bath", "batch, layer, group"),
        (
            ["--normalizer.kind", "convnorm", "--normalizer.eps", "-1"],
            "normalizer.eps",
            "-1.0",
            "0 to 1000",
        ),
        (
            ["--normalizer.kind", "oni", "--normalizer.iterations", "-3"],
            "normalizer.iterations",
            "-3",
            "1 to 100",
        ),
        (["--data.name", "mnist"], "data.name", "mnist", "digits, cifar10"),
        (["--data.image_size", "0"], "data.image_size", "0", "an integer from 1 to 1024"),
        (["--score.protocol", "fid"], "score.protocol", "fid", "none, fid50k_train"),
        (["--model", "dcgan"], "model", "dcgan", "keys and values"),
        (["--device", "tpu"], "device", "tpu", "auto, cpu, cuda"),
        (["--checkpoint_every", "0"], "checkpoint_every", "0", "1 to 1000000000"),
        (["--cfg"], "--cfg", "nothing", "a path or a name"),
    ],
)
def test_a_wrong_option_is_named_with_its_value_and_what_was_expected(
    argv, key, value, expected, capsys
):
    assert exit_code(lambda: read(*argv) and 0) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(rf"error: {re.escape(key)}: .+ expected .+\n", captured.err)
    assert value in captured.err
    assert expected in captured.err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {archh: dcgan}", "model.archh: no such key; expected model.arch"),
        ("modle: {arch: dcgan}", "modle: no such key; expected model"),
        ("model.arch: dcgan", "model.arch: dots are for the command line; expected nested keys"),
        ("cfg: sngan_none", "cfg: no such key; expected data, model"),
        ("model: {generator_width: 4}", "model.generator_width: no such key"),
        ("model: {options: 3}", "model.options: 3 is not allowed; expected keys and values"),
        ("steps: 1.5", "steps: 1.5 is not allowed; expected int"),
        ("steps: null", "steps: null is not allowed; expected int"),
        ("seed: true", "seed: True is not allowed; expected int"),
        ("train: {flip: 1}", "train.flip: 1 is not allowed; expected bool"),
        ("model: 3", "model: 3 is not allowed; expected keys and values"),
        ("model:", "model: null is not allowed; expected keys and values"),
        ("- steps", "holds a list; expected keys and values"),
        ("# nothing yet", "holds nothing; expected keys and values"),
        ("steps: 3\nsteps: 4", "the key 'steps' stands there twice"),
        ("model: {arch: dcgan, arch: dcgan}", "the key 'arch' stands there twice"),
        ("steps: 3\nmodel: [", "line 2: not readable as YAML"),
        ("steps: 3\n1: 4", "1: no such key"),
        ("[1]: 3", "line 1: not readable as YAML"),
    ],
)
def test_a_wrong_file_is_named_with_the_place(text, message, file, capsys):
    path = file(text)
    assert exit_code(lambda: read("--cfg", path) and 0) == 2
    assert re.fullmatch(rf"error: {re.escape(path)}: .*{message}.*\n", capsys.readouterr().err)


def test_a_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"x.yaml: not readable as YAML"):
        read("--cfg", str(tmp_path / "x.yaml"))


def test_an_unknown_config_lists_those_that_exist():
    with pytest.raises(InputError, match=f"--cfg sngan: no such file; .*{', '.join(SHIPPED)}"):
        read("--cfg", "sngan")


def test_the_command_line_overrules_the_file_and_the_file_the_defaults(file):
    path = file("steps: 3\nseed: 5\n")
    config = read("--seed", "6", "--cfg", path)
    assert (config.steps, config.seed, config.train.n_dis) == (3, 6, 5)


def test_exponents_are_numbers(file):
    """YAML 1.1 reads 2e-4 as a string."""
    assert read("--cfg", file("optim: {lr: 2e-4}")).optim.lr == 2e-4
    assert read("--optim.lr", "1e-3").optim.lr == 1e-3


def test_print_config_can_be_given_back(file, capsys):
    argv = ["--cfg", "sngan_spectral", "--optim.lr", "3e-5", "--model.options.generator_width", "8"]
    with pytest.raises(SystemExit) as exited:
        read(*argv, "--print_config")
    assert exited.value.code in (0, None)
    assert read("--cfg", file(capsys.readouterr().out)) == read(*argv)


def test_a_saved_config_can_be_given_back(file):
    config = tiny({"optim.lr": 1e-7, "normalizer.kind": "layer"})
    assert read("--cfg", file(to_yaml(config))) == config


def test_a_config_survives_its_dictionary():
    config = tiny({"seed": 2**40, "optim.lr": 1e-7})
    assert from_dict(GanConfig, asdict(config)) == config
    with pytest.raises(InputError, match="stepps"):
        from_dict(GanConfig, {**asdict(config), "stepps": 3})


def test_options_of_an_architecture_are_merged_and_belong_to_it(file):
    path = file("model: {arch: dcgan, options: {generator_width: 5, discriminator_width: 6}}")
    config = read("--cfg", path, "--model.options.discriminator_width", "7")
    assert config.model.options == {"generator_width": 5, "discriminator_width": 7}
    assert from_dict(GanConfig, asdict(config)) == config
    with pytest.raises(InputError, match=r"^model\.options\.stem: no such key; expected"):
        read("--cfg", file("model: {options: {stem: cifar}}"))
    values = asdict(config)
    values["model"]["options"]["stem"] = "cifar"
    with pytest.raises(InputError, match=r"^model\.options\.stem: no such key; expected"):
        from_dict(GanConfig, values)


def test_the_run_folder_is_named_after_config_and_seed():
    options = parse(GanConfig, "gan", "sngan_none", ["--cfg", "sngan_spectral", "--seed", "7"])[1]
    assert Path(options.run_dir) == Path("runs/gan/sngan_spectral/seed7")


@pytest.mark.parametrize(
    ("argv", "expected"),
    [([], False), (["--overwrite"], True), (["--overwrite", "false"], False)],
)
def test_overwrite_is_a_flag(argv, expected, tmp_path):
    options = parse(GanConfig, "gan", "sngan_none", [*arguments(tmp_path), *argv])[1]
    assert options.overwrite is expected


def kinds_in(kind) -> set:
    return set().union(*map(kinds_in, get_args(kind))) if get_args(kind) else {kind}


def numbers_of(config: type) -> list[tuple[str, type]]:
    """The keys of a config's numbers, and whether they are int or float."""
    found = ((key, kinds_in(kind) & {int, float}) for key, kind in types_of(config).items())
    return [(key, float if float in kinds else int) for key, kinds in found if kinds]


CONFIG_TYPES = {"gan": GanConfig, "classification": ClassifierConfig}
# Their own tests hold these against their ranges.
ELSEWHERE = {"data.image_size", "adversary.eps", "adversary.step_size"}
NUMBERS = [
    (config, key, kind)
    for config in CONFIG_TYPES.values()
    for key, kind in numbers_of(config)
    if key not in ELSEWHERE
]


@pytest.mark.parametrize(
    ("config", "key", "kind"), NUMBERS, ids=[f"{c.__name__}.{key}" for c, key, _ in NUMBERS]
)
def test_every_number_has_bounds_and_is_a_number(config, key, kind):
    """One without a range takes 10^31 or NaN, and the run hangs, crashes or measures nothing."""
    wrong = [10**31, -(10**31), True] + [1e300, math.nan, math.inf, -math.inf] * (kind is float)
    *groups, name = key.split(".")
    for value in wrong:
        values = group = asdict(config())
        for part in groups:
            group = group[part]
        group[name] = (value, value) if isinstance(group[name], tuple) else value
        with pytest.raises(InputError, match=rf"^{re.escape(key)}: .* is not allowed; expected "):
            build_config(config, values)


@pytest.mark.parametrize("value", [10**24, 10**6, 0, -1, True, 1.5])
@pytest.mark.parametrize(
    "architectures", [gan.networks.ARCHITECTURES, classification.networks.ARCHITECTURES]
)
def test_every_width_has_bounds(architectures, value):
    for architecture in architectures.values():
        for name in ("width", "generator_width", "discriminator_width"):
            if name in architecture.options.__dataclass_fields__:
                with pytest.raises(
                    InputError, match=rf"^model\.options\.{name}: .* is not allowed"
                ):
                    options_of(architecture.options, {name: value}, "model.options")


@pytest.mark.parametrize("value", [0, 10**24, True, math.nan])
def test_the_options_of_running_have_bounds(value):
    with pytest.raises(InputError, match=r"^checkpoint_every: .* is not allowed"):
        RunOptions(checkpoint_every=value)


DEEP = "[" * 5000 + "]" * 5000
BOMB = "&a [x, x, x, x, x, x, x, x]"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"seed: {DEEP}", "more than 20 lists or mappings within each other"),
        (f"model: {DEEP.replace('[', '{a: ').replace(']', '}')}", "more than 20 lists or mapp"),
        ("- " * 5000 + "x", "more than 20 lists or mappings within each other"),
        (f"seed: {'9' * 5000}", "a number of 5000 characters; expected at most 400"),
        (f"optim: {{lr: {'9' * 5000}.0}}", "a number of 5002 characters"),
        (f"seed: 0x{'f' * 5000}", "a number of 5002 characters"),
        (
            f"model: {{options: {{a: {BOMB}, b: [*a, *a, *a]}}}}",
            r"the alias \*a; expected its value",
        ),
        ("model: &a {options: *a}", r"the alias \*a; expected its value"),
        (f"# {'x' * LARGEST}\nseed: 3", "expected at most 262144"),
        ('data: {root: "a\\0b"}\nrun_dir: "a\\0b"', "run_dir: .* has a NUL byte"),
    ],
)
def test_a_file_that_would_take_forever_is_refused(text, expected, file, capsys):
    assert exit_code(lambda: read("--cfg", file(text)) and 0) == 2
    assert re.fullmatch(rf"error: .*{expected}.*\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--seed", DEEP], "seed: .* more than 20 lists"),
        (["--model.options", DEEP], "model.options: .* more than 20 lists"),
        (["--model", "&a {options: *a}"], "model: .* the alias"),
        (["--seed", "9" * 5000], "seed: .* a number of 5000 characters"),
        (["--optim.lr", "9" * 5000], "optim.lr: .* a number of 5000 characters"),
        (["--optim.lr", "1e400"], "optim.lr: inf is not allowed"),
        (["--optim.lr", ".nan"], "optim.lr: nan is not allowed"),
        (["--run_dir", "~no_such_user/x"], "run_dir: .* there is no user 'no_such_user'"),
        (["--run_dir", "x" * 256], "run_dir: .* is too long; expected at most 255 bytes a name"),
        (["--run_dir", "x/" * 3000], "run_dir: .* is too long"),
        (["--cfg", "~no_such_user/x"], "--cfg: .* there is no user 'no_such_user'"),
        (["--cfg", "x" * 256], "--cfg: .* is too long"),
        (["--cfg", "ä" * 200], "--cfg: .* is too long"),
        (["--cfg", ""], "--cfg: '' is not allowed; expected a path or a name"),
        (["--lr", "1"], "lr: no such key; expected optim.lr$"),
        (["--every", "1"], "every: .* expected log.every, score.every, checkpoints.every$"),
        (["--foo.arch", "1"], "foo.arch: no such key; expected model.arch$"),
        (["--generator_width=4"], "generator_width: .* expected model.options.generator_width$"),
        (["--width=4"], "width: .* model.options.generator_width, model.options.discr"),
        (["--config", "x"], "config: no such key; expected cfg$"),
        ([f"--{'x' * 3000}"], r"x+\.\.\. \(3000 characters\): no such key"),
    ],
)
def test_a_wrong_word_is_answered_in_one_short_line(argv, expected, capsys):
    assert exit_code(lambda: read(*argv) and 0) == 2
    line = capsys.readouterr().err
    assert re.match(f"error: {expected}", line.removesuffix("\n"))
    assert line.count("\n") == 1
    assert len(line) < 500


def test_a_group_can_come_from_a_file_that_is_checked_as_well(file):
    assert read("--optim", file("{lr: 0.5}")).optim.lr == 0.5
    for text, expected in ((f"lr: {DEEP}", "more than 20"), ("ler: 1", "optim.ler: no such key")):
        with pytest.raises(InputError, match=expected):
            read("--optim", file(text))


def test_without_a_config_the_help_and_the_configs_are_shown(capsys):
    """Instead of the training of one that nobody has asked for."""
    assert exit_code(lambda: parse(GanConfig, "gan", None, []) and 0) == 2
    output = capsys.readouterr()
    assert output.out.startswith("usage: ")
    for name in SHIPPED:
        first = (CONFIGS / "gan" / f"{name}.yaml").read_text().splitlines()[0].lstrip("# ")
        assert re.search(rf"^  {name} +{re.escape(first[:40])}", output.out, re.MULTILINE)
    assert output.err.startswith("error: --cfg: nothing given; expected ")


@pytest.mark.parametrize(
    ("config", "argv", "warned"),
    [
        (
            GanConfig,
            ["--normalizer.iterations=2"],
            ["normalizer.iterations: without effect, as normalizer.kin"],
        ),
        (
            GanConfig,
            ["--normalizer.kind=batch", "--normalizer.eps=0.1", "--normalizer.affine=true"],
            ["normalizer.affine, normalizer.eps: .*kind batch reads scale, multiplier$"],
        ),
        (GanConfig, ["--normalizer.scale=2"], []),
        (ClassifierConfig, ["--normalizer.kind=batch"], []),  # only what somebody has set
        (ClassifierConfig, ["--adversary.repeats=3"], ["adversary.repeats: .* standard reads no "]),
        (
            ClassifierConfig,
            ["--optim.name=adamw", "--optim.nesterov=true", "--optim.schedule=cosine"],
            ["optim.nesterov: .* as optim.name adamw reads betas$"],
        ),
        (ClassifierConfig, ["--optim.schedule=constant", "--optim.gamma=0.5"], ["optim.gamma: "]),
    ],
)
def test_what_the_chosen_kind_does_not_read_is_said(config, argv, warned, capsys):
    name = {GanConfig: "sngan_convnorm", ClassifierConfig: "cifar10_resnet18_batch"}[config]
    pipeline = {GanConfig: "gan", ClassifierConfig: "classification"}[config]
    parse(config, pipeline, name, argv)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(warned)
    for line, expected in zip(lines, warned, strict=True):
        assert re.match(f"warning: {expected}", line)


@pytest.mark.parametrize("pipeline", CONFIG_TYPES)
def test_no_shipped_config_sets_what_it_does_not_read(pipeline, capsys):
    for path in (CONFIGS / pipeline).glob("*.yaml"):
        parse(CONFIG_TYPES[pipeline], pipeline, None, ["--cfg", path.stem])
    assert capsys.readouterr().err == ""

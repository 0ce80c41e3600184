"""The words that all scripts take."""

import argparse
import runpy
import sys

import jsonargparse
import pytest
from runs import ROOT

from convnorm.catalogue import CATALOGUE

SCRIPTS = ROOT / "scripts"
NAMES = sorted(path.name for path in SCRIPTS.glob("*.py"))


class Seen(Exception):
    """The parser of a script, before it reads anything."""


def parser_of(name: str, monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    def show(parser, *args, **kwargs):
        raise Seen(parser)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", show)
    monkeypatch.setattr(jsonargparse.ArgumentParser, "parse_args", show)
    monkeypatch.setattr(sys, "argv", [name])
    with pytest.raises(Seen) as seen:
        runpy.run_path(str(SCRIPTS / name), run_name="__main__")
    return seen.value.args[0]


@pytest.mark.parametrize("name", NAMES)
def test_every_option_has_a_line_of_help(name, monkeypatch):
    actions = parser_of(name, monkeypatch)._actions
    silent = [action.dest for action in actions if not (action.help or "").strip()]
    assert silent == []


def test_the_help_of_kinds_says_what_each_reads(monkeypatch):
    """And that of numbers their range, that of networks their options."""
    text = " ".join(parser_of("train_cls.py", monkeypatch).format_help().split())
    for kind, definition in CATALOGUE.items():
        assert f"{kind} reads {', '.join(definition.reads) or 'none'}" in text
    for expected in (
        "free reads step_size, repeats, reset_perturbation",
        "multistep reads milestones, gamma",
        "simple_cnn: width 1 to 8192 (32)",
        "learning rate [more than 0 and at most 1e+30]",
    ):
        assert expected in text


@pytest.mark.parametrize(
    ("name", "argv", "line"),
    [
        ("benchmark.py", "--config digits_gan", "config: no such key; expected cfg"),
        ("benchmark.py", "--workers 0", "--workers: '0' is not allowed; expected 1 to 1024"),
        ("benchmark.py", "--workers many", "--workers: 'many' is not allowed; expected 1 to 1024"),
        ("benchmark.py", f"--workers {'9' * 5000}", "--workers: '999"),
        ("benchmark.py", "--processes_per_run -1", "--processes_per_run: '-1' is not allowed"),
        ("benchmark.py", "--device tpu", "--device: 'tpu' is not allowed; expected one of auto,"),
        ("benchmark.py", "--folder ~no_such_user/x", "--folder: ~no_such_user/x: there is no user"),
        ("benchmark.py", f"--folder {'x' * 300}", "--folder: xxx"),
        ("benchmark.py", "--cfg", "--cfg: expected one argument"),
        ("benchmark.py", "--cfg ~no_such_user", "--cfg: ~no_such_user: there is no user"),
        ("benchmark.py", "--report --print_plan", "--print_plan: not allowed with argument"),
        ("benchmark.py", "--runs_per_gpu all", "--runs_per_gpu: 'all' is not allowed; expected 1"),
        (
            "benchmark.py",
            "--cfg digits_gan --device cpu --runs_per_gpu auto",
            "runs_per_gpu: 'auto' ",
        ),
        (
            "benchmark.py",
            "--cfg digits_gan --runs_per_gpu 2 --cluster local",
            "--runs_per_gpu: 2 i",
        ),
        ("benchmark.py", "--hours 0", "--hours: '0' is not allowed; expected more than 0 and at"),
        ("benchmark.py", "--hours nan", "--hours: 'nan' is not allowed; expected more than 0"),
        ("benchmark.py", "--hours inf", "--hours: 'inf' is not allowed; expected more than 0"),
        ("benchmark.py", "--cfg digits_gan --hours 2 --report", "--hours: 2.0 is not allowed; exp"),
        ("benchmark.py", "--cfg digits_gan --hours 2 --merge .", "--hours: 2.0 is not allowed; e"),
        ("benchmark.py", "--cfg digits_gan --hours 2 --cluster local", "--hours: 2.0 is not all"),
        ("benchmark.py", "--cfg digits_gan --merge . --cluster slurm", "--cluster: 'slurm' is no"),
        ("benchmark.py", "--cfg digits_gan --merge /no/where", "--merge: /no/where: no such fold"),
        ("benchmark.py", "--cfg digits_gan --merge", "--merge: expected at least one argument"),
        ("benchmark.py", "--report --merge .", "--merge: not allowed with argument"),
        ("benchmark.py", f"--cfg digits_gan --cluster local --submitit a={'[' * 5000}", "--submit"),
        ("bench_speed.py", "", "what: missing; see --help"),
        ("bench_speed.py", "all", "what: 'all' is not allowed; expected one of layer, filter"),
        ("bench_speed.py", "layer --repeats 0", "--repeats: '0' is not allowed; expected 1 to"),
        ("bench_speed.py", "layer --json /no/where", "--json: /no/where cannot be written"),
        ("bench_speed.py", "layer --batch 3", "batch: no such key; expected batch_size"),
        (
            "bench_speed.py",
            "gan --batch_size 3",
            "--batch_size: not read by gan; expected with",
        ),
        ("bench_speed.py", "layer --goals", "--goals: not read by layer; expected with gan, cls"),
        ("bench_speed.py", "layer --seconds nan", "--seconds: nan is not allowed"),
        ("bench_speed.py", "table", "--json: missing; expected the file of results"),
        ("bench_speed.py", "table --json nothing", "nothing: No such file or directory; expected"),
        ("check_device.py", "--parts x", "--parts: 'x' is not allowed; expected one of runs,"),
        ("check_device.py", "--seconds nan", "--seconds: nan is not allowed"),
        ("check_device.py", "--out ~no_such_user", "--out: ~no_such_user: there is no user"),
        ("train_digits_extractor.py", "--seed -1", "--seed: '-1' is not allowed; expected 0 to"),
        ("train_digits_extractor.py", "--out /no/where", "--out: /no/where cannot be written"),
        ("train_gan.py", "--lr 3", "lr: no such key; expected optim.lr"),
        ("train_gan.py", "", "--cfg: nothing given; expected a path or one of the names above"),
        ("benchmark.py", "", "--cfg: nothing given; expected a path or one of the names above"),
    ],
)
def test_wrong_words_are_answered_in_one_line(name, argv, line, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *argv.split()])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPTS / name), run_name="__main__")
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert said.startswith(f"error: {line}")
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []

"""Several processes: one run, shared out."""

import json
import os
import runpy
import signal
import socket
import sys
import time
from pathlib import Path

import pytest
import torch
from processes import pair
from runs import (
    ALONE,
    ROOT,
    TINY_CLASSIFIER,
    Child,
    arguments,
    classifier_run,
    differing,
    log_of,
    run,
    script,
    state_of,
    tiny,
)
from torch import nn

from classification.trainer import Trainer as ClassifierTrainer
from convnorm.experiment.data import load_images
from convnorm.experiment.errors import InputError, Stopped
from convnorm.experiment.run import distributed, loop
from convnorm.experiment.run.distributed import Process
from convnorm.experiment.run.global_batch_norm import with_global_statistics
from gan.trainer import Trainer
from gan.training_images import training_images

CHANGES = {"normalizer.kind": "spectral", "train.n_dis": 1, "train.ema_decay": 0.5, "log.every": 1}


def rank_main(folder: str, *argv: str) -> None:
    """The training script as one rank, which dumps its batches and its last state."""
    rank, batches = int(os.environ["RANK"]), []
    update = Trainer.update

    def dumped(self, draws):
        update(self, draws)
        batches.extend(draw.real.images for draw in draws.discriminator)
        state = {"batches": batches, **self.state.state_dict()}
        torch.save(state, Path(folder) / f"rank{rank}.pt")

    Trainer.update = dumped
    script("train_gan.py", *argv)


def train_pair(tmp_path: Path, changes: dict, *argv: str) -> list[tuple[int, str]]:
    options = arguments(tmp_path / "run", changes)
    return pair(tmp_path, rank_main, str(tmp_path), *options, *argv)


def ranks(folder: Path) -> list[dict]:
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


def start_torchrun(tmp_path: Path, changes: dict) -> Child:
    """Start torchrun with two ranks of the training script, each of which says who it is."""
    main = tmp_path / "main.py"
    main.write_text(
        "import os, pathlib, runpy\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "(folder / f\"pid{os.environ['RANK']}\").write_text(str(os.getpid()))\n"
        f"runpy.run_path({str(ROOT / 'scripts' / 'train_gan.py')!r}, run_name='__main__')\n"
    )
    options = arguments(tmp_path / "run", changes)
    return Child(tmp_path / "output.txt", torchrun, str(main), *options)


def torchrun(*argv: str) -> None:
    """The command of this name, whose ranks are interpreters of their own."""
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.argv = ["torchrun", "--standalone", "--nproc_per_node=2", *argv]
    runpy.run_module("torch.distributed.run", run_name="__main__", alter_sys=True)


def is_running(pid: int) -> bool:
    """Whether there is such a process, and it is no zombie that waits for its new parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
def test_ranks_save_and_end_when_torchrun_is_killed(tmp_path):
    """Left behind, they would train on for hours, and hold the folder and the GPUs."""
    child = start_torchrun(tmp_path, {**CHANGES, "steps": 10**6})
    log, deadline = tmp_path / "run" / "log.jsonl", time.monotonic() + 120
    while not log.is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    pids = [int((tmp_path / f"pid{rank}").read_text()) for rank in range(2)]
    assert all(map(is_running, pids))
    child.process.kill()
    try:
        while any(map(is_running, pids)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any(map(is_running, pids))
    finally:
        for pid in filter(is_running, pids):
            os.kill(pid, signal.SIGKILL)
    code, output = child.end()
    assert code == -signal.SIGKILL
    assert state_of(tmp_path / "run")["step"] > 0
    assert "of 1000000 and saved in" in output


PLACE = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize("given", range(1, 2 ** len(PLACE) - 1))
def test_half_a_place_among_processes_is_one_line(given, monkeypatch):
    """What a cluster has left in the environment; alone, each process would do the same run."""
    there = [name for index, name in enumerate(PLACE) if given >> index & 1]
    for name, value in PLACE.items():
        monkeypatch.delenv(name, raising=False)
        if name in there:
            monkeypatch.setenv(name, value)
    with pytest.raises(InputError) as error:
        distributed.start("cpu")
    lacking = [name for name in PLACE if name not in there]
    assert str(error.value).startswith(
        f"{', '.join(there)}: set, and {', '.join(lacking)} not; expected all of them"
    )


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("RANK", "2", "0 to 1"),
        ("RANK", "-1", "0 to 1"),
        ("RANK", "first", "0 to 1"),
        ("RANK", "1.0", "0 to 1"),
        ("RANK", "\u0661", "0 to 1"),
        ("WORLD_SIZE", "0", "1 to"),
        ("WORLD_SIZE", "two", "1 to"),
        ("WORLD_SIZE", "9" * 5000, "1 to"),
        ("MASTER_PORT", "70000", "1 to 65535"),
        ("MASTER_PORT", "http", "1 to 65535"),
        ("LOCAL_RANK", "2", "0 to 1"),
        ("LOCAL_RANK", "x", "0 to 1"),
    ],
)
def test_a_place_that_cannot_be_is_one_line(name, value, expected, monkeypatch):
    for key, good in {**PLACE, name: value}.items():
        monkeypatch.setenv(key, good)
    with pytest.raises(InputError, match=f"^{name}: .* is not allowed; expected {expected}"):
        distributed.start("cpu")


@pytest.mark.parametrize("address", ["127.0.0.1", "no-such-host.invalid"])
def test_others_that_do_not_come_are_one_line(address, monkeypatch):
    """It waited for four hours."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(distributed, "MEETING", 1)
    place = {**PLACE, "RANK": "1", "MASTER_ADDR": address, "MASTER_PORT": str(port)}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    expected = rf"^process 1: cannot meet the others at {address}, port {port} \("
    with pytest.raises(Stopped, match=expected) as stopped:
        distributed.start("cpu")
    assert "\n" not in str(stopped.value)


def test_two_processes_are_one_run(tmp_path):
    """Equal weights from unequal halves: only averaged gradients, buffers, anchors give that."""
    augmented = {"train.diffaugment": "color,translation,cutout", "train.fraction": 0.5}
    changes = {**CHANGES, **augmented, "loss.lecam": 1.0, "loss.lecam_start": 0}
    codes = train_pair(tmp_path, changes)
    assert [code for code, _ in codes] == [0, 0], codes
    assert ["trained 4 steps" in output for _, output in codes] == [True, False]
    first, second = ranks(tmp_path)
    halves = first.pop("batches"), second.pop("batches")
    assert differing(first, second) == []

    config = tiny(changes)
    draw = Trainer(config, training_images(load_images(config.data), config), ALONE).draw
    alone = [update.real.images for step in range(4) for update in draw(step).discriminator]
    run(tmp_path / "alone", changes)
    assert differing([torch.cat(parts) for parts in zip(*halves, strict=True)], alone) == []
    log, expected = log_of(tmp_path / "run"), log_of(tmp_path / "alone")
    assert [line["step"] for line in log] == [0, 1, 2, 3, 4]
    # D(real) before the first update depends on no statistics of a batch.
    assert log[1]["d_real"] == pytest.approx(expected[1]["d_real"], rel=1e-5)


def test_with_one_batch_norm_two_processes_train_as_one_does(tmp_path):
    """Both networks normalize by the batch, so statistics of a half would be seen in every loss."""
    # Steps of Adam are signs at first, and rounding decides those of gradients that are nearly 0.
    tiny_steps = {"optim.lr": 1e-7, "steps": 2}
    changes = {**CHANGES, **tiny_steps, "normalizer.kind": "batch", "train.sync_batch_norm": True}
    codes = train_pair(tmp_path, changes)
    assert [code for code, _ in codes] == [0, 0], codes
    first, second = ({**rank, "batches": None} for rank in ranks(tmp_path))
    assert differing(first, second) == []
    run(tmp_path / "alone", changes)
    found, expected = log_of(tmp_path / "run"), log_of(tmp_path / "alone")
    for line, other in zip(found[1:], expected[1:], strict=True):
        for name in ("loss_d", "loss_g", "d_real", "d_fake"):
            assert line[name] == pytest.approx(other[name], rel=1e-4, abs=1e-5), (name, other)
    for name in ("optim_g", "optim_d"):
        found, expected = (last_gradients(tmp_path / run_dir, name) for run_dir in ("run", "alone"))
        assert (found - expected).abs().max() < 1e-3 * expected.abs().max()
    places = [
        json.loads((tmp_path / name / "summary.json").read_text())["segments"][0]["sync_batch_norm"]
        for name in ("run", "alone")
    ]
    assert places == [True, False]


def last_gradients(run_dir: Path, optimizer: str) -> torch.Tensor:
    """Those of a run's last step, all in one: what Adam keeps of them with a beta1 of 0."""
    states = state_of(run_dir)[optimizer]["state"]
    return torch.cat([state["exp_avg"].flatten() for state in states.values()])


def test_a_pair_resumes_and_only_the_main_process_writes(tmp_path):
    changes = {**CHANGES, "log.every": 2}
    codes = train_pair(tmp_path, changes)
    assert [code for code, _ in codes] == [0, 0], codes
    whole = state_of(tmp_path / "run")
    assert codes[1][1] == ""
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1
    assert len(log_of(tmp_path / "run")) == 3

    cut = tmp_path / "cut"
    cut.mkdir()
    options = arguments(cut / "run", changes)
    codes = pair(cut, interrupted, str(cut), *options)
    assert [code for code, _ in codes] == [143, 143], codes
    assert state_of(cut / "run")["step"] == 2
    code, output = Child(cut / "alone.txt", script, "train_gan.py", *options).end()
    assert code == 2
    assert output.startswith(f"error: {cut}/run/last.pt: was trained by 2 processes on cpu; ")
    codes = train_pair(cut, changes)
    assert [code for code, _ in codes] == [0, 0], codes
    assert differing(state_of(cut / "run"), whole) == []
    assert log_of(cut / "run") == log_of(tmp_path / "run")
    parts = json.loads((cut / "run" / "summary.json").read_text())["segments"]
    assert [(part["step"], part["world_size"]) for part in parts] == [(0, 2), (2, 2)]


def interrupted(folder: str, *argv: str) -> None:
    """Training that one rank is asked to stop in its first step; all have to agree."""
    update = Trainer.update

    def signalled(self, draws):
        if os.environ["RANK"] == "1" and self.state.step == 0:
            os.kill(os.getpid(), 15)
        update(self, draws)

    Trainer.update = signalled
    script("train_gan.py", *argv)


@pytest.mark.parametrize(
    "adversary",
    [{"kind": "free", "repeats": 2}, {"kind": "pgd", "awp": 0.1}],
    ids=["free", "awp"],
)
def test_two_processes_train_the_classifier_of_one(adversary, tmp_path):
    """Free's perturbation has to be cut, gathered and cut again at the same places; the weights
    that AWP trains at have to be those of the whole batch."""
    changes = {
        "normalizer.kind": "none",  # no statistics of a batch, so the halves add up
        "optim.lr": 0.01,
        "noise.kind": "pair",
        "noise.rate": 0.2,
        "train.epochs": 1,
        **{f"adversary.{key}": value for key, value in adversary.items()},
    }
    run_dir = tmp_path / "run"
    options = arguments(run_dir, changes, TINY_CLASSIFIER)
    codes = pair(tmp_path, stopped_classifier, *options)
    assert [code for code, _ in codes] == [143, 143], codes
    assert state_of(run_dir)["step"] == 1
    codes = pair(tmp_path, script, "train_cls.py", *options)
    assert [code for code, _ in codes] == [0, 0], codes
    assert codes[1][1] == ""
    classifier_run(tmp_path / "alone", changes)
    found, expected = (state_of(folder) for folder in (run_dir, tmp_path / "alone"))
    assert found["step"] == expected["step"] == 3
    if adversary["kind"] == "free":
        assert found["perturbation"].shape == (40, 1, 8, 8)
        assert (found["perturbation"] != expected["perturbation"]).float().mean() < 0.01
    for name, weight in expected["network"].items():
        assert torch.allclose(found["network"][name], weight, rtol=1e-3, atol=1e-5), name


def stopped_classifier(*argv: str) -> None:
    """Training whose second process is asked to stop in its first step."""
    update = ClassifierTrainer.update

    def signalled(self, draws):
        update(self, draws)
        if os.environ["RANK"] == "1" and self.state.step == 0:
            os.kill(os.getpid(), 15)

    ClassifierTrainer.update = signalled
    loop.VOTE_EVERY = 1
    script("train_cls.py", *argv)


def test_a_batch_that_does_not_divide_is_named_by_each(tmp_path):
    for key in ("train.batch_size", "train.generator_batch_size"):
        for code, output in train_pair(tmp_path, {key: 7}):
            assert code == 2
            assert output.startswith(f"error: {key}: ")
            assert output.count("\n") == 1


def test_the_others_end_when_the_main_process_does(tmp_path):
    """A process that waits for one that is gone would print a traceback, or wait for hours."""
    run(tmp_path / "run", {"seed": 5})
    (main_code, main_output), (code, output) = train_pair(tmp_path, {})
    assert main_code == 2
    assert main_output.startswith("error: run_dir: ")
    assert code == 1
    assert output.startswith("process 1: cannot reach the others, see their messages (")
    assert output.count("\n") == 1


def collectives(folder: str) -> None:
    process = distributed.start("cpu")
    tensors = [torch.full((2, 2), float(process.rank)), torch.tensor(4.0 * process.rank)]
    process.average_(tensors)
    result = {
        "averages": tensors,
        "any": [process.any(False), process.any(process.rank == 1)],
        "part": [process.local_slice(6, "x").start, process.local_slice(6, "x").stop],
        "gathered": process.gather(torch.tensor([[process.rank, 7]])),
        "objects": process.gather_objects([None, {"of": torch.tensor(7)}][process.rank]),
        "turns": [*range(5)][process.turns],
    }
    torch.save(result, Path(folder) / f"rank{process.rank}.pt")
    distributed.stop()


def test_averages_votes_and_parts(tmp_path):
    """A sum in place of a mean hides behind Adam, which does not see the scale."""
    assert pair(tmp_path, collectives, str(tmp_path)) == [(0, ""), (0, "")]
    first, second = ranks(tmp_path)
    expected = [torch.full((2, 2), 0.5), torch.tensor(2.0)]
    assert differing(first["averages"], expected) == []
    assert differing(second["averages"], expected) == []
    assert first["any"] == second["any"] == [False, True]
    assert first["gathered"].tolist() == second["gathered"].tolist() == [[0, 7], [1, 7]]
    assert first["objects"] == [None, {"of": torch.tensor(7)}]
    assert second["objects"] == []
    assert (first["turns"], second["turns"]) == ([0, 2, 4], [1, 3])
    assert (first["part"], second["part"]) == ([0, 3], [3, 6])


SHAPE = 6, 3, 5, 4  # of a batch, half of it in each process


def normalized(norm: nn.Module, x: torch.Tensor, part: slice) -> dict[str, torch.Tensor]:
    """What a BatchNorm makes of a batch, or of a process's part: values, gradients, statistics."""
    x = x[part].clone().requires_grad_()
    target = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))[part]
    y = norm(x)
    (y * target).mean().backward()
    found = {"y": y.detach(), "x": x.grad, "of_x": norm.eval()(x).detach()}
    return (
        found | dict(norm.state_dict()) | {f"{n}.grad": p.grad for n, p in norm.named_parameters()}
    )


def batch_norm() -> tuple[nn.BatchNorm2d, torch.Tensor]:
    norm, random = nn.BatchNorm2d(SHAPE[1], momentum=0.3), torch.Generator().manual_seed(0)
    with torch.no_grad():
        norm.weight.uniform_(1, 2, generator=random)
        norm.bias.uniform_(1, 2, generator=random)
    return norm, torch.rand(SHAPE, generator=random) + torch.arange(6.0)[:, None, None, None]


def global_batch_norm(folder: str) -> None:
    process = distributed.start("cpu")
    norm, x = batch_norm()
    with_global_statistics(norm, process)
    found = normalized(norm, x, process.local_slice(len(x), "x"))
    process.average_([norm.weight.grad, norm.bias.grad])
    torch.save(found, Path(folder) / f"rank{process.rank}.pt")
    half = norm.train()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    distributed.stop()


def test_a_batch_norm_over_processes_is_that_of_the_batch(tmp_path):
    assert pair(tmp_path, global_batch_norm, str(tmp_path)) == [(0, ""), (0, "")]
    expected = normalized(*batch_norm(), slice(None))
    first, second = ranks(tmp_path)
    first["x"], second["x"] = (each["x"] / 2 for each in (first, second))  # a mean over the half
    for name, value in expected.items():
        is_batch = value.dim() == 4
        found = torch.cat([first[name], second[name]]) if is_batch else first[name]
        torch.testing.assert_close(found, value, rtol=1e-5, atol=1e-6, msg=name)
        assert is_batch or differing(first[name], second[name]) == []


def test_alone_nothing_is_sent():
    process = Process(torch.device("cpu"))
    norm = nn.BatchNorm2d(2)
    with_global_statistics(norm, process)
    assert type(norm) is nn.BatchNorm2d
    tensor = torch.ones(2)
    process.average_([tensor])
    process.barrier()
    assert tensor.tolist() == [1, 1]
    assert process.any(True)
    assert process.local_slice(5, "x") == slice(0, 5)
    with pytest.raises(InputError, match="x: 5 does not divide by 2 processes"):
        Process(torch.device("cpu"), 0, 2).local_slice(5, "x")

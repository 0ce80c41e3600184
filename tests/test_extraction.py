"""From a generator's latents to features: where the images are, and what each process does."""

import json
import os
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from processes import pair
from runs import (
    ALONE,
    SCORED,
    SELECTED,
    arguments,
    log_of,
    rough_measurements,
    script,
    state_of,
    tiny,
)
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from convnorm.experiment.codec import to_json
from convnorm.experiment.errors import InputError
from convnorm.experiment.run.distributed import Process
from gan import scoring
from gan import train as train_module
from gan.extraction import extract
from gan.extractor import GPU_BATCH, Extractor
from gan.extractors import EXTRACTORS
from gan.keys import REPORTED, SELECTING
from gan.models import PART, Latents, Prior, batches, build, generate, sample
from gan.scoring import Scorer


class Copies(TorchDispatchMode):
    """Notes every copy from one device to another: (from, to, number of bytes)."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str, int]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten._to_copy.default and result.device != args[0].device:
            self.found.append((args[0].device.type, result.device.type, result.nbytes))
        return result


def toy(device: torch.device, forward) -> Extractor:
    return Extractor(EXTRACTORS["digits"], "a" * 64, True, forward, device)


def test_generated_images_leave_a_gpu_once_and_never_come_back():
    """On tensors that only say that they are on a GPU: the features need nothing from the CPU."""
    num, seen = 2 * PART + 3, []

    def forward(images: Tensor) -> tuple[Tensor, None]:
        seen.append((images.device.type, len(images)))
        return images.float().mean(dim=(2, 3)), None

    with FakeTensorMode(allow_non_fake_inputs=True), Copies() as copies:
        device = torch.device("cuda")
        generator = nn.Sequential(nn.Linear(8, 48, device=device), nn.Unflatten(1, (3, 4, 4)))
        generator.forward = lambda z, labels: nn.Sequential.forward(generator, z)
        latents = Latents(torch.zeros(num, 8), torch.zeros(num, dtype=torch.long))
        found = extract(batches(generator, latents), num, toy(device, forward), ALONE)
    assert seen == 2 * [("cuda", GPU_BATCH)] * 2 + [("cuda", 3)]
    assert (found.images.device.type, found.features.features.device.type) == ("cpu", "cuda")
    down = [size for source, target, size in copies.found if (source, target) == ("cuda", "cpu")]
    up = [size for source, target, size in copies.found if (source, target) == ("cpu", "cuda")]
    assert down == [48 * size for size in (PART, PART, 3)]
    assert sum(up) == num * (8 * 4 + 8)  # the latents and the labels


def test_a_part_is_done_before_the_next_is_made():
    """Catches a generator that fills the device with all images first."""
    made = []

    def parts():
        for index in range(3):
            made.append(index)
            yield torch.full((PART, 1, 2, 2), index, dtype=torch.uint8)

    def forward(images: Tensor) -> tuple[Tensor, None]:
        assert made[-1] == images.max()
        return images.flatten(1).float(), None

    extract(parts(), 3 * PART, toy(torch.device("cpu"), forward), ALONE)
    assert made == [0, 1, 2]


@pytest.mark.parametrize("name", EXTRACTORS)
def test_parts_are_cut_where_batches_are(name):
    """Else a network would see other batches than those of all images, which round otherwise."""
    assert PART % EXTRACTORS[name].cpu_batch == PART % GPU_BATCH == 0


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("num", [1, PART, PART + 1, 5 * PART - 1])
def test_shares_are_all_images_of_one_process(world_size, num):
    """Bit by bit; every share starts at a whole batch, so each batch is one that there was."""
    generator, _ = build(tiny(), 1)
    whole = generate(generator, Prior(8, 10).draw(num, 3, "stream"))
    processes = [Process(torch.device("cpu"), rank, world_size) for rank in range(world_size)]
    shares = [
        [*sample(generator, Prior(8, 10), num, 3, process.turns, stream="stream")]
        for process in processes
    ]
    in_turn = [
        share[index] for index in range(len(shares[0])) for share in shares if index < len(share)
    ]
    assert torch.equal(torch.cat(in_turn), whole)
    assert generator.training


# Two processes

QUICK = {**SCORED, "normalizer.kind": "none", "train.n_dis": 1, "log.every": 1, "steps": 2}
SHARED = {
    **SELECTED,
    **QUICK,
    "score.num_real": 600,
    "score.num_fake": 600,
    "score.select_num_real": 300,
    "score.select_num_fake": 520,
    "train.ema_decay": 0.5,
}


def counting(folder: str, *argv: str) -> None:
    """Training as one rank, which notes of how many images it extracts features."""
    os.environ["XDG_CACHE_HOME"] = folder
    call, seen, file = Extractor.__call__, [], Path(folder) / f"seen{os.environ['RANK']}.json"

    def noted(self, images):
        seen.append(len(images))
        file.write_text(json.dumps(seen))
        return call(self, images)

    Extractor.__call__ = noted
    with rough_measurements():
        script("train_gan.py", *argv)


def scored_alone(run_dir: Path, cache_dir: Path) -> dict:
    """The scores of the last step of a run, computed by one process."""
    config, state = tiny(SHARED), state_of(run_dir)
    generator, _ = build(config, 1)
    generator.load_state_dict(state["ema"])
    records = []
    for protocol, keys, stream in (
        (config.score.reported, REPORTED, "samples"),
        (config.score.selecting, SELECTING, "selection"),
    ):
        scorer = Scorer(protocol, config.data, ALONE, keys=keys, cache_dir=cache_dir)
        draw = partial(sample, generator, Prior(8, 10), stream=stream)
        records.append(scorer(draw, config.seed, step=state["step"], ema=True))
    return json.loads(json.dumps(to_json(replace(records[0], selection=records[1]))))


def test_two_processes_give_the_scores_of_one(tmp_path):
    """Bit by bit, with a cache and without, and again for files that were lost."""
    run_dir = tmp_path / "run"
    options = arguments(run_dir, SHARED)
    codes = pair(tmp_path, counting, str(tmp_path), *options)
    assert [code for code, _ in codes] == [0, 0], codes
    assert codes[1][1] == ""
    seen = [json.loads((tmp_path / f"seen{rank}.json").read_text()) for rank in range(2)]
    # Of 600 reals and 300 to select by, then of 600 and 520 fakes, in parts of 256 in turn.
    fakes = [256, 88, 256, 8], [256, 256]
    assert seen == [[256, 88, 256, *fakes[0]], [256, 44, *fakes[1]]]
    (record,) = log_of(run_dir, "metrics.jsonl")
    expected = {"step": 2, **scored_alone(run_dir, tmp_path / "alone")}
    assert {key: record[key] for key in expected} == expected

    (run_dir / "metrics.jsonl").unlink()
    codes = pair(tmp_path, counting, str(tmp_path), *options)
    assert [code for code, _ in codes] == [0, 0], codes
    assert log_of(run_dir, "metrics.jsonl") == [record]
    seen = [json.loads((tmp_path / f"seen{rank}.json").read_text()) for rank in range(2)]
    assert seen == [*map(list, fakes)]  # the real side was in the cache


def failing(failing_rank: str, *argv: str) -> None:
    """Training in which one rank fails: the main one at the scores, another one at the features."""
    if os.environ["RANK"] == failing_rank == "0":

        def fail(*args, **kwargs):
            raise InputError("no scores")

        scoring._record = fail
    elif os.environ["RANK"] == failing_rank:

        def fail(*args, **kwargs):
            raise KeyboardInterrupt

        train_module.sample = fail
    with rough_measurements():
        script("train_gan.py", *argv)


@pytest.mark.parametrize(("failing_rank", "codes"), [(0, [2, 1]), (1, [1, 130])])
def test_none_waits_for_one_that_fails_while_it_scores(tmp_path, failing_rank, codes):
    options = arguments(tmp_path / "run", {**QUICK, "score.every": 1})
    found = pair(tmp_path, failing, str(failing_rank), *options)
    assert [code for code, _ in found] == codes, found
    _, output = found[1 - failing_rank]
    assert f"process {1 - failing_rank}: cannot reach the others, see their messages (" in output
    assert "Traceback" not in output + found[failing_rank][1]


def signalled(*argv: str) -> None:
    """Training whose second process is asked to stop while it makes images for a score."""

    def asked(*args, **kwargs):
        if os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        return sample(*args, **kwargs)

    train_module.sample = asked
    with rough_measurements():
        script("train_gan.py", *argv)


def test_all_stop_when_one_is_asked_to_while_it_scores(tmp_path):
    changes = {**QUICK, "score.every": 1, "steps": 4}
    codes = pair(tmp_path, signalled, *arguments(tmp_path / "run", changes))
    assert [code for code, _ in codes] == [143, 143], codes
    assert state_of(tmp_path / "run")["step"] == 2
    assert [line["step"] for line in log_of(tmp_path / "run", "metrics.jsonl")] == [1, 2]

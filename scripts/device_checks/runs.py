"""Part `runs`: short trainings, whole, and killed in the middle and resumed. Are they equal?

Every run is a process of its own, which SIGKILL ends as a power cut would. Forked, so this part
comes before the checking process touches CUDA; and what it reads of the runs, it reads in children
too, because threads of PyTorch do not survive a fork.
"""

import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convnorm.experiment.run.checkpoint import CHECKPOINT
from device_checks.children import Ended, in_child
from device_checks.part import Case, Finding, Setup, Skip
from device_checks.workloads import Config, classifier_config, gan_config, train, trainer_of

SHOWN = 5  # of the tensors that differ
LOADING = 60.0  # seconds to read two checkpoints, at most


def cases(setup: Setup) -> Iterator[tuple[str, Case]]:
    """A kill and a resume of each config; on a GPU two of them also without determinism."""
    for index, (name, config) in enumerate(_configs(setup).items()):
        yield name, partial(killed_and_resumed, config, setup.folder / f"run{index}", setup)
    if setup.on_gpu:  # as a user runs it, whose cuDNN may choose algorithms that do not repeat
        for kind, make in (("GAN", gan_config), ("classifier", classifier_config)):
            config = _short(make, setup, "convnorm")
            folder = setup.folder / f"repeated {kind}"
            yield f"{kind} convnorm, twice as it is", partial(repeated, config, folder, setup)


def _short(make: Any, setup: Setup, kind: str, **options: Any) -> Config:
    """A run of about 30 steps; tiny, of four."""
    length = {"steps": 4 if setup.tiny else 30} if make is gan_config else {"epochs": 1}
    return make(setup, kind, **length, **options)


def _configs(setup: Setup) -> dict[str, Config]:
    gan, classifier = (partial(_short, make, setup) for make in (gan_config, classifier_config))
    found = {
        "GAN spectral, averaged": gan("spectral", ema_decay=0.9),
        "classifier convnorm, free, bfloat16": classifier(
            "convnorm", adversary="free", precision="bfloat16"
        ),
    }
    if setup.tiny:
        return found
    return found | {
        "GAN convnorm, averaged, bfloat16": gan("convnorm", ema_decay=0.9, precision="bfloat16"),
        "classifier batch, pgd, averaged": classifier(
            "batch", adversary="pgd", select="pgd10", ema_decay=0.9
        ),
        "GAN resnet convnorm, gradient penalty": gan(
            "convnorm", arch="sngan_resnet", gradient_penalty=10.0
        ),
        "classifier convnorm, trades": classifier("convnorm", adversary="trades"),
        "GAN spectral_convnorm": gan("spectral_convnorm"),
    }


def killed_and_resumed(config: Config, folder: Path, setup: Setup) -> Finding:
    """Compare all that a checkpoint holds, of a run that was left alone and one that was not."""
    every, kill_at = (2, 3) if setup.tiny else (10, 17)
    run = partial(_in_child, config, setup=setup, every=every, deterministic=setup.on_gpu)
    steps = run(folder / "whole")
    failures = []
    try:
        run(folder / "cut", kill_at=kill_at)
        failures.append(f"ended before step {kill_at}, at which it was to be killed")
    except Ended as ended:
        if ended.code != -signal.SIGKILL:
            raise
    saved = in_child(_steps_done, folder / "cut", seconds=LOADING)
    resumed = run(folder / "cut")
    if resumed != steps - saved:
        failures.append(f"{resumed} steps after the resume at {saved} of {steps}")
    different = in_child(_different, folder / "cut", folder / "whole", seconds=LOADING)
    if different:
        failures.append(f"{len(different)} entries differ after a resume: {different[:SHOWN]}")
    numbers = {"steps": steps, "resumed_at": saved, "different": different}
    return Finding(f"killed at {kill_at}, resumed at {saved} of {steps}", numbers, tuple(failures))


def repeated(config: Config, folder: Path, setup: Setup) -> Finding:
    """Whether two equal runs end equal where nothing asks for it; no failure if they do not."""
    for name in ("first", "second"):
        _in_child(config, folder / name, setup=setup, every=10**9, deterministic=False)
    different = in_child(_different, folder / "first", folder / "second", seconds=LOADING)
    line = f"{len(different)} entries differ" if different else "equal to the last bit"
    return Finding(f"without deterministic algorithms: {line}", {"different": different})


def _in_child(
    config: Config,
    run_dir: Path,
    *,
    setup: Setup,
    every: int,
    deterministic: bool,
    kill_at: int | None = None,
) -> int:
    """Train in a process of its own and return how many steps it took."""
    seconds = max(10.0, setup.seconds_left())
    args = (config, run_dir, setup, every, deterministic, kill_at)
    try:
        return in_child(_train, *args, seconds=seconds)
    except TimeoutError as error:
        raise Skip(f"no time left: {error}") from None


def _train(
    config: Config,
    run_dir: Path,
    setup: Setup,
    every: int,
    deterministic: bool,
    kill_at: int | None,
) -> int:
    if deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        # Only a warning where PyTorch has no such algorithm: the comparison decides.
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.deterministic = True
    if setup.on_gpu:
        torch.cuda.set_device(setup.device)
    trainer, taken = trainer_of(config), 0
    original = trainer.update

    def update(self: Any, draws: Any) -> None:
        nonlocal taken
        if self.state.step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        original(self, draws)
        taken += 1

    trainer.update = update  # of this process, which ends after the run
    train(config, run_dir, setup, every)
    return taken


def _checkpoint(run_dir: Path) -> dict[str, Any]:
    """All of last.pt but the starts that it took."""
    state = torch.load(run_dir / CHECKPOINT, map_location="cpu", weights_only=True)
    return {key: value for key, value in state.items() if key != "segments"}


def _steps_done(run_dir: Path) -> int:
    return _checkpoint(run_dir)["step"]


def _different(run_dir: Path, other: Path) -> list[str]:
    return differing(_checkpoint(run_dir), _checkpoint(other))


def differing(a: Any, b: Any, path: str = "") -> list[str]:
    """Where two nested states are not equal, bit by bit; of tensors with the largest distance."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.dtype == b.dtype and torch.equal(a, b):
            return []
        far = (a.double() - b.double()).abs().max().item() if a.shape == b.shape else None
        return [f"{path}: {far if far is not None else 'shape'}"]
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [where for key in a for where in differing(a[key], b[key], f"{path}.{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        pairs = enumerate(zip(a, b, strict=True))
        return [where for i, pair in pairs for where in differing(*pair, f"{path}[{i}]")]
    return [] if a == b else [path]

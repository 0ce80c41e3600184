"""Means of what training steps note; only reading them waits for the device."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from convnorm.experiment.errors import Stopped
from convnorm.experiment.run.distributed import Process


class Meter:
    """Sums and counts since the last reading, and how many steps were finite, on the device."""

    def __init__(self, terms: Sequence[str], device: torch.device):
        self.terms = tuple(terms)
        self.sums = torch.zeros(len(self.terms), device=device)
        self.counts = torch.zeros_like(self.sums)
        # A NaN stays in its sum, so the first bad step is the one after these.
        self.finite_steps = torch.zeros((), dtype=torch.int64, device=device)

    def note(self, **values: torch.Tensor) -> None:
        """Add scalars to the sums of their terms."""
        places = [self.terms.index(name) for name in values]
        sums, counts = self.sums.unbind(), self.counts.unbind()
        torch._foreach_add_([sums[i] for i in places], [v.detach() for v in values.values()])
        torch._foreach_add_([counts[i] for i in places], 1)

    def end_step(self, process: Process, statistics: list[torch.Tensor]) -> None:
        """Average the sums and the networks' running statistics over the processes."""
        process.average_([self.sums, *statistics])
        self.finite_steps += self.sums.isfinite().all()

    def means(self) -> dict[str, float]:
        """Return the mean of each term over what was noted since the last call."""
        sums, counts = self.sums.tolist(), self.counts.tolist()
        self.sums.zero_()
        self.counts.zero_()
        found = zip(self.terms, sums, counts, strict=True)
        return {name: total / count for name, total, count in found if count > 0}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint between two calls of `means` has to hold."""
        return {"sums": self.sums, "counts": self.counts}

    def load_state_dict(self, state: dict[str, Any], step: int) -> None:
        """Go on from the `state_dict` of step `step`."""
        self.sums.copy_(state["sums"])
        self.counts.copy_(state["counts"])
        self.finite_steps.fill_(step)

    def check_finite(self, step: int, weights: Iterable[torch.Tensor], run_dir: Path) -> None:
        """Raise Stopped if a loss or a weight is NaN or infinite; waits for the device.

        As this runs before each checkpoint is written, the last one is good.
        """
        bad, what = self.finite_steps.item() + 1, "the loss"
        if bad > step:
            if torch.stack([weight.isfinite().all() for weight in weights]).all().item():
                return
            bad, what = step, "a weight"
        raise Stopped(
            f"step {bad}: {what} is NaN or infinite, the run cannot go on; "
            f"{run_dir} keeps the last good checkpoint, if there was one",
            code=1,
        )

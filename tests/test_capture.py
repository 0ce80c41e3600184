"""A whole update as one CUDA graph: what it needs, what it refuses, and that it trains the same.

Only the last test needs a GPU. The others run what is captured on a CPU: a stand-in takes the place
of the graph, and Adam is told that it may be captured there.
"""

import copy
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from runs import ALONE, differing, run, state_of, tiny
from torch import Tensor, nn
from torch.optim import adam
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from convnorm import CATALOGUE, Normalizer
from convnorm.experiment.data import load_images
from convnorm.experiment.errors import InputError
from convnorm.experiment.run import capture
from convnorm.experiment.run.capture import WARM_UP, Captured, placed, refill
from convnorm.experiment.run.distributed import Process
from convnorm.experiment.run.loop import take_step
from gan.trainer import Trainer

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
# Rates that float32 holds, as a captured update does: 1, 7/8, ... of a power of two.
EXACT = {"optim.lr": 2.0**-12, "optim.lr_d": 2.0**-11, "steps": 8, "train.ema_decay": 0.9}
VARIANTS = {
    "lecam": {"normalizer.kind": "none", "loss.lecam": 1.0, "loss.lecam_start": 0},
    "clip": {"normalizer.kind": "none", "loss.name": "wasserstein", "loss.weight_clip": 0.1},
    "spectral": {
        "normalizer.kind": "spectral",
        "loss.name": "relativistic",
        "loss.r1": 1.0,
        "loss.final_penalty_factor": 0.1,
        "train.precision": "bfloat16",
    },
    "convnorm": {
        "normalizer.kind": "convnorm",
        "loss.gradient_penalty": 10.0,
        "train.diffaugment": "color,translation,cutout",
        "train.flip": True,
    },
    "chain": {"normalizer.kind": "chain"},
    "parts": {"normalizer.kind": "spectral", "train.accumulate": 2},
}
each_variant = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)


class StandIn:
    """For a CUDA graph: computes at a replay what a graph has recorded."""

    def __init__(self, run):
        self.run, self.calls = run, []

    def run_eagerly(self):
        self.calls.append("eager")
        self.run()

    def capture(self):
        self.calls.append("capture")

    def replay(self):
        self.calls.append("replay")
        self.run()


@pytest.fixture
def on_cpu(monkeypatch):
    """What is captured runs on a CPU."""
    monkeypatch.setattr(capture, "Graph", StandIn)
    monkeypatch.setattr(capture, "check", lambda process: None)
    monkeypatch.setattr(adam, "_get_capturable_supported_devices", lambda *_, **__: ["cpu"])


def make_trainer(changes: dict[str, Any], process: Process = ALONE) -> Trainer:
    config = tiny({**EXACT, **changes})
    return Trainer(config, load_images(config.data), process)


# What is refused


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"normalizer.kind": "own"}, "normalizer.kind 'own' waits"),
        ({"optim.final_beta2": 0.99}, "optim.final_beta2 0.99"),
        ({"loss.lecam": 1.0, "loss.lecam_start": 2}, "loss.lecam_start 2"),
    ],
    ids=["waiting", "changing-betas", "other-steps"],
)
def test_a_config_that_no_graph_can_hold_is_refused(changes, names):
    changes = {"normalizer.kind": "none", **changes}
    tiny(changes)
    with pytest.raises(InputError, match=rf"^train\.capture: 'graph' .*{names}.* expected none"):
        tiny({**changes, "train.capture": "graph"})


@pytest.mark.parametrize(
    ("process", "message"),
    [
        (ALONE, "needs a CUDA device and got 'cpu'"),
        (Process(CUDA, 1, 2), "needs a single process and got 2"),
    ],
)
def test_a_place_without_graphs_is_refused(process, message):
    with pytest.raises(InputError, match=rf"^train\.capture: 'graph' {message}; expected none$"):
        Captured(print, process)


def test_a_refusal_leaves_a_run_that_was_to_be_overwritten(tmp_path):
    run(tmp_path, {"steps": 1})
    before = state_of(tmp_path)
    with pytest.raises(InputError, match=r"train\.capture"):
        run(tmp_path, {"steps": 1, "train.capture": "graph"}, overwrite=True)
    assert differing(state_of(tmp_path), before) == []


def test_what_a_device_cannot_capture_is_said_in_a_line(on_cpu, monkeypatch):
    def capture_fails(self):
        raise RuntimeError("CUDA error: operation not permitted\nmore\nlines")

    monkeypatch.setattr(StandIn, "capture", capture_fails)
    captured = Captured(lambda draws: None, ALONE)
    for _ in range(WARM_UP):
        captured((1.0,))
    with pytest.raises(InputError, match=r"^train\.capture: .*\(CUDA error: .*permitted\)"):
        captured((1.0,))


# The places of the draws


@dataclass(frozen=True)
class Part:
    images: Tensor
    rate: float
    mix: Tensor | None = None
    begun: bool = False


def draws(**changes: Any) -> tuple[Part, dict[str, Tensor]]:
    return (replace(Part(torch.rand(2, 3), 0.1), **changes), {"color": torch.rand(4)})


def test_draws_are_copied_into_places_that_stay():
    first, second = draws(), draws(rate=0.3)
    places = placed(first, CPU)
    tensors = [places[0].images, places[0].rate, places[1]["color"]]
    assert tensors[0] is not first[0].images
    assert torch.equal(tensors[0], first[0].images)
    refill(places, second)
    for place, drawn in zip(
        tensors, (second[0].images, torch.tensor(0.3).double(), second[1]["color"]), strict=True
    ):
        torch.testing.assert_close(place, drawn)
    assert tensors[1].dtype == torch.float64
    assert tensors[1].item() == 0.3
    assert [places[0].images, places[0].rate, places[1]["color"]] == tensors
    assert (places[0].mix, places[0].begun) == (None, False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": torch.rand(3, 3)}, r"draws\[0\]\.images is a tensor \(3, 3\) of float32 after"),
        ({"images": torch.ones(2, 3).int()}, r"draws\[0\]\.images is a tensor \(2, 3\) of int32"),
        ({"mix": torch.rand(2)}, r"draws\[0\]\.mix is a tensor \(2,\) of float32 after None"),
        ({"begun": True}, r"draws\[0\]\.begun is True after False"),
        ({"rate": None}, r"draws\[0\]\.rate is None after a tensor \(\) of float64"),
    ],
)
def test_draws_that_change_their_form_are_refused(changes, message):
    """A replay would train on what is left of another step."""
    with pytest.raises(InputError, match=rf"^train\.capture: .*{message}.*expected none$"):
        refill(placed(draws(), CPU), draws(**changes))


def test_more_or_fewer_draws_are_refused():
    one, augmentation = draws()
    for others in ((one,), (one, {}), (one, {"cutout": augmentation["color"]}), one):
        with pytest.raises(InputError, match=r"train\.capture"):
            refill(placed((one, augmentation), CPU), others)


# The update


@each_variant
def test_a_captured_run_ends_where_an_eager_one_does(changes, on_cpu):
    """Draws that do not reach their places, or a step too many, would end elsewhere."""
    eager, other = make_trainer(changes), make_trainer(changes)
    other.update = Captured(other.update, ALONE)
    logs = []
    for trainer in (eager, other):
        torch.manual_seed(0)  # CHAIN draws from the global state
        for _ in range(WARM_UP + 3):
            take_step(trainer)
        trainer.state.check_finite(None)
        logs.append(trainer.state.means())
    assert other.update.graph.calls == ["eager"] * WARM_UP + ["capture"] + ["replay"] * 3
    assert differing(*logs) == []
    states = [trainer.state.state_dict() for trainer in (eager, other)]
    for state in states:  # a rate is a number in one and a tensor in the other
        for name in ("optim_g", "optim_d"):
            (group,) = state[name]["param_groups"]
            group["lr"] = float(group["lr"])
    assert differing(*states) == []


class Recorded(TorchDispatchMode):
    """The operations in a context, with all that stands in them beside the values of tensors."""

    def __init__(self):
        super().__init__()
        self.operations: list[tuple[str, ...]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "aten":
            given = tree_leaves((args, kwargs or {}))
            words = (tuple(x.shape) if isinstance(x, Tensor) else x for x in given)
            self.operations.append((function.overloadpacket.__name__, *map(repr, words)))
        return function(*args, **(kwargs or {}))

    @property
    def waiting(self) -> set[str]:
        """Those that give the process a value, ask it for one, or end in a check."""
        names = {name for name, *_ in self.operations}
        waiting = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal"}
        return (names & waiting) | {name for name in names if "linalg_" in name} - NORMS


NORMS = {"linalg_vector_norm"}


def recorded(update: Any, *args: Any) -> Recorded:
    with Recorded() as found:
        update(*args)
    return found


@each_variant
def test_an_update_does_the_same_with_other_values(changes, on_cpu):
    """A number of the process that changes from step to step would stay that of the capture."""
    trainer = make_trainer({"train.n_dis": 1, "train.capture": "graph", **changes})
    for optimizer in (trainer.state.optim_g, trainer.state.optim_d):
        optimizer.param_groups[0]["foreach"] = True  # as on a GPU
    drawn = [placed(trainer.draw(step), CPU) for step in range(4)]
    trainer.update.update(drawn[0])  # what an optimizer has gathered comes to be
    second, third, fourth = (recorded(trainer.update.update, each) for each in drawn[1:])
    assert third.operations == second.operations
    assert fourth.operations == second.operations
    assert second.waiting == set()


def test_an_eager_update_has_numbers_of_its_step():
    """So the test above sees them."""
    trainer = make_trainer({"normalizer.kind": "none", "train.n_dis": 1})
    drawn = [trainer.draw(step) for step in range(3)]
    trainer.update(drawn[0])
    one, other = (recorded(trainer.update, each) for each in drawn[1:])
    assert one.operations != other.operations
    assert "_local_scalar_dense" in one.waiting


@pytest.mark.parametrize("kind", CATALOGUE)
def test_a_kind_says_whether_it_waits_for_the_device(kind):
    normalize = Normalizer(kind)
    layers = nn.Sequential(
        normalize(nn.Conv2d(3, 4, 3)), nn.Flatten(), normalize(nn.Linear(36, 2))
    ).train()
    x = torch.rand(2, 3, 5, 5)
    layers(x)
    found = recorded(lambda: layers(x).sum().backward())
    assert bool(found.waiting) == CATALOGUE[kind].waits, found.waiting


# Adam


def test_a_checkpoint_does_not_say_how_adam_computes(on_cpu):
    """Options of an optimizer are in its state, and one that was not captured says so."""
    eager = make_trainer({})
    take_step(eager)
    captured = make_trainer({"train.capture": "graph"})
    captured.state.load_state_dict(copy.deepcopy(eager.state.state_dict()))
    for name, steps in (("optim_g", 1), ("optim_d", 2)):
        optimizer, other = getattr(captured.state, name), getattr(eager.state, name)
        assert optimizer.param_groups[0]["capturable"] is True
        states = [one.state_dict()["state"] for one in (optimizer, other)]
        assert differing(*states) == []
        assert states[0][0]["step"] == steps


def test_a_log_has_the_rates_of_the_schedule(on_cpu):
    """And not what float32 makes of them."""
    trainer = make_trainer({"train.capture": "graph", "optim.lr": 3e-4, "optim.lr_d": 1e-4})
    for _ in range(3):
        take_step(trainer)
    means = trainer.state.means()
    assert (means["lr"], means["lr_d"]) == (3e-4 * 6 / 8, 1e-4 * 6 / 8)
    assert trainer.state.optim_g.param_groups[0]["lr"].dtype == torch.float32


# On a GPU


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs a GPU")
@pytest.mark.filterwarnings("ignore")  # of what has no deterministic algorithm
@each_variant
def test_a_graph_trains_as_its_update_does(changes, request, monkeypatch):
    """To the last bit; and as an update without Adam's tensors does, but for the rounding."""
    request.addfinalizer(lambda: torch.use_deterministic_algorithms(False))
    torch.use_deterministic_algorithms(True, warn_only=True)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    gpu = Process(torch.device("cuda", 0))
    graph, eager = (make_trainer({"train.capture": "graph", **changes}, gpu) for _ in range(2))
    plain = make_trainer(changes, gpu)
    eager.update = lambda drawn: Trainer.update(eager, placed(drawn, gpu.device))
    for trainer in (graph, eager, plain):
        torch.manual_seed(0)
        for _ in range(WARM_UP + 3):
            take_step(trainer)
        trainer.state.check_finite(None)
    assert graph.update.graph.graph is not None
    states = [trainer.state.state_dict() for trainer in (graph, eager)]
    assert differing(*states) == []
    assert graph.state.means() == eager.state.means()
    if "bfloat16" not in changes.values():
        for one, other in zip(
            graph.generator.parameters(), plain.generator.parameters(), strict=True
        ):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-4)

"""The attacks: known optima, other libraries, the budget, and models left as they were found."""

import math
import sys
import warnings
from functools import cache, partial
from itertools import pairwise
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from classification import attacks
from classification import simba as simba_module
from classification.attacks import Looks, fgsm, frozen, logits, pgd
from classification.simba import simba
from convnorm import functional
from convnorm.experiment.streams import generator
from convnorm.normalizers import Normalizer


def fgsm_indexed(model, x, y, indices=None):
    return fgsm(model, x, y, eps=0.03)


def simba_images(*args, **options):
    return simba(*args, **options)[0]


# (model, x, y, indices=...) -> x_adv
ATTACKS = {
    "fgsm": fgsm_indexed,
    "pgd linf": partial(pgd, norm="linf", eps=0.03, step_size=0.01, steps=4, restarts=2),
    "pgd l2": partial(pgd, norm="l2", eps=0.3, step_size=0.1, steps=4, restarts=2),
    "simba pixel": lambda *args, **kw: simba(*args, eps=0.03, basis="pixel", max_queries=40, **kw)[
        0
    ],
    "simba dct": lambda *args, **kw: simba(*args, eps=0.03, basis="dct", max_queries=40, **kw)[0],
}
every_attack = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
every_norm = pytest.mark.parametrize("norm", ["linf", "l2"])


def images(n: int = 12, shape=(2, 6, 6), low: float = 0.0, high: float = 1.0) -> torch.Tensor:
    stream = torch.Generator().manual_seed(1)
    return low + (high - low) * torch.rand(n, *shape, generator=stream, dtype=torch.float64)


def network() -> nn.Module:
    """A small network of float64 with something of every kind that an attack could disturb."""
    torch.manual_seed(0)
    model = nn.Sequential(
        Normalizer("spectral")(nn.Conv2d(2, 6, 3, padding=1)),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        Normalizer("convnorm", affine=True)(nn.Conv2d(6, 6, 3, padding=1)),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(6 * 36, 5),
    ).double()
    with torch.no_grad():
        model(images())  # statistics that are not those of a fresh layer
    return model.eval()


def labels(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The labels by which the model is right."""
    return logits(model, x, len(x)).argmax(1)


class Linear(nn.Module):
    """Two classes; the logit of class 1 is w . x + offset, that of class 0 is 0."""

    def __init__(self, w: torch.Tensor, offset: float):
        super().__init__()
        self.w, self.offset = nn.Parameter(w), offset

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        margin = (x * self.w).flatten(1).sum(1) + self.offset
        return torch.stack([torch.zeros_like(margin), margin], dim=1)


def direction(shape=(2, 6, 6), dtype=torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=dtype)


@pytest.mark.parametrize(
    "attack",
    [
        partial(fgsm, eps=0.1),
        partial(pgd, norm="linf", eps=0.1, step_size=0.03, steps=8, restarts=2),
        partial(simba_images, eps=0.1, basis="pixel", max_queries=1000),
    ],
    ids=["fgsm", "pgd", "simba"],
)
def test_linf_attacks_reach_the_optimum_of_a_linear_model(attack):
    """A wrong sign, a mean over the batch, a wrong projection; images touch the box."""
    x, w = images(), direction()
    y = torch.zeros(len(x), dtype=torch.long)
    best = (x + 0.1 * w.sign()).clamp(0, 1)
    torch.testing.assert_close(attack(Linear(w, -30), x, y), best)


def test_l2_attack_reaches_the_optimum_of_a_linear_model():
    x, w = images(low=0.4, high=0.6), direction()
    y = torch.zeros(len(x), dtype=torch.long)
    x_adv = pgd(Linear(w, -30), x, y, norm="l2", eps=0.4, step_size=0.1, steps=80, restarts=2)
    torch.testing.assert_close(x_adv, x + 0.4 * w / w.norm(), rtol=0, atol=1e-6)


def test_l2_attack_nears_the_optimum_of_a_linear_model_in_the_box():
    """The optimum moves every pixel by t * w, cut at the box, with t such that the norm is eps."""
    x, w, eps = images(), direction(), 0.8
    y = torch.zeros(len(x), dtype=torch.long)
    low, high = torch.zeros(len(x), 1, 1, 1).double(), torch.full((len(x), 1, 1, 1), 1e3).double()
    for _ in range(100):
        t = (low + high) / 2
        far = ((x + t * w).clamp(0, 1) - x).flatten(1).norm(dim=1).view_as(t) > eps
        low, high = torch.where(far, low, t), torch.where(far, t, high)
    best = (x + low * w).clamp(0, 1)
    assert not torch.allclose(best, x + low * w)
    x_adv = pgd(Linear(w, -30), x, y, norm="l2", eps=eps, step_size=0.01, steps=300, start=x)
    gained, possible = (((z - x) * w).flatten(1).sum(1) for z in (x_adv, best))
    assert (gained <= possible + 1e-9).all()
    assert (gained >= 0.99 * possible).all()


def test_a_confident_model_is_attacked_too():
    """Its probability of class 0 is 1 after rounding, and the cross-entropy's gradient is 0."""

    class Swapped(Linear):
        def forward(self, x):
            return -super().forward(x).flip(1)  # the logits of class 0 hold all of the image

    x, w = images().float(), direction(dtype=torch.float32)
    y = torch.zeros(len(x), dtype=torch.long)
    model = Swapped(w, -1000)
    assert (F.softmax(model(x), dim=1)[:, 0] == 1).all()
    best = (x + 0.1 * w.sign()).clamp(0, 1)
    torch.testing.assert_close(fgsm(model, x, y, eps=0.1), best)
    step = pgd(model, x, y, norm="l2", eps=1, step_size=0.1, steps=1, start=x)
    inside = ((step > 0) & (step < 1)).flatten(1).all(1)
    torch.testing.assert_close(
        (step - x).flatten(1).norm(dim=1)[inside], torch.full_like(x[inside][:, 0, 0, 0], 0.1)
    )


@every_norm
def test_no_gradient_means_no_step(norm):
    """0 / 0 in the normalized step."""

    class Constant(nn.Module):
        def forward(self, x):
            return torch.tensor([1.0, 0.0]) + 0 * x.flatten(1)[:, :2]

    x, y = images().float(), torch.zeros(12, dtype=torch.long)
    x_adv = pgd(Constant(), x, y, norm=norm, eps=0.1, step_size=0.1, steps=2, start=x)
    assert torch.equal(x_adv, x)


@pytest.fixture
def foolbox(monkeypatch) -> ModuleType:
    """foolbox without its downloader of models, which needs packages that attacks do not."""
    monkeypatch.setitem(sys.modules, "foolbox.zoo", ModuleType("foolbox.zoo"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield pytest.importorskip("foolbox")


def foolbox_path(foolbox, model, x, y, *, norm, eps, step_size, start, steps) -> torch.Tensor:
    """The iterates of foolbox's PGD, the start too: (steps + 1, N, C, H, W)."""
    kind = foolbox.attacks.LinfPGD if norm == "linf" else foolbox.attacks.L2PGD
    path = [start]
    for k in range(1, steps + 1):
        attack = kind(abs_stepsize=step_size, steps=k, random_start=True)
        attack.get_random_start = lambda x0, epsilon: type(x0)(start)
        path.append(attack(foolbox.PyTorchModel(model, bounds=(0, 1)), x, y, epsilons=eps)[1])
    return torch.stack(path)


@pytest.mark.parametrize(("norm", "eps", "step_size"), [("linf", 0.05, 0.012), ("l2", 0.6, 0.15)])
def test_pgd_is_foolbox_until_the_image_is_fooled(foolbox, norm, eps, step_size):
    """From a given start: the first misclassified iterate, or else the last one."""
    model, x = network(), images(40)
    y, noise = labels(model, x), images(40, low=-1).flip(0)
    start = attacks.project(x + 0.3 * eps * noise, x, norm, eps)
    options = {"norm": norm, "eps": eps, "step_size": step_size, "start": start, "steps": 6}
    x_adv = pgd(model, x, y, **options)
    path = foolbox_path(foolbox, model, x, y, **options)
    wrong = torch.stack([labels(model, point) != y for point in path])
    first = torch.where(wrong.any(0), wrong.int().argmax(0), 6)
    assert set(first.tolist()) >= set(range(1, 7)), "no case for some step"
    expected = path[first, torch.arange(40)]
    torch.testing.assert_close(x_adv, expected, rtol=0, atol=1e-9)


def test_fgsm_is_foolbox(foolbox):
    model, x = network(), images()
    y = labels(model, x)
    attack = foolbox.attacks.LinfFastGradientAttack(random_start=False)
    theirs = attack(foolbox.PyTorchModel(model, bounds=(0, 1)), x, y, epsilons=0.05)[1]
    torch.testing.assert_close(fgsm(model, x, y, eps=0.05), theirs)


@pytest.fixture
def torchattacks() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield pytest.importorskip("torchattacks")


def test_fgsm_is_torchattacks(torchattacks):
    model, x = network(), images()
    y = labels(model, x)
    theirs = torchattacks.FGSM(model, eps=0.05)(x, y)
    torch.testing.assert_close(fgsm(model, x, y, eps=0.05), theirs)


@every_norm
def test_pgd_is_torchattacks_where_nothing_is_fooled(torchattacks, norm):
    model, x = network(), images()
    y, eps, alpha = labels(model, x), *{"linf": (0.002, 0.0007), "l2": (0.01, 0.004)}[norm]
    x_adv = pgd(model, x, y, norm=norm, eps=eps, step_size=alpha, steps=5, start=x)
    robust = labels(model, x_adv) == y
    assert robust.sum() > 6
    kind = torchattacks.PGD if norm == "linf" else torchattacks.PGDL2
    theirs = kind(model, eps=eps, alpha=alpha, steps=5, random_start=False)(x, y)
    torch.testing.assert_close(x_adv[robust], theirs[robust], rtol=0, atol=1e-9)


@pytest.mark.parametrize("changes", [{"steps": 0}, {"eps": 0.0}])
def test_no_step_or_no_budget_is_the_identity(changes):
    """A random start that is counted as an attack of 0 steps."""
    model, x = network(), images()
    options = {"norm": "l2", "eps": 0.5, "step_size": 0.1, "steps": 3, **changes}
    assert pgd(model, x, labels(model, x), **options) is x


@every_attack
def test_attacks_find_something_within_the_budget(attack):
    model, x = network(), images(40)
    y = labels(model, x)
    x_adv = attack(model, x, y)
    assert x_adv.shape == x.shape
    assert x_adv.dtype == x.dtype
    assert 0 <= x_adv.min() <= x_adv.max() <= 1
    far = (x_adv - x).flatten(1)
    assert far.norm(dim=1).max() <= 0.3 + 1e-6 or far.abs().max() <= 0.03 + 1e-6
    assert (labels(model, x_adv) != y).any()


@every_attack
@pytest.mark.parametrize(
    "defect",
    [
        lambda x_adv, x, norm, eps: x + 1.01 * (x_adv - x).clamp(-eps, eps) + 1e-5,
        lambda x_adv, x, norm, eps: x_adv - 2,
        lambda x_adv, x, norm, eps: x_adv * math.nan,
    ],
    ids=["too far", "out of the box", "not a number"],
)
def test_an_attack_that_cheats_is_stopped(monkeypatch, attack, defect):
    for module in (attacks, simba_module):
        monkeypatch.setattr(module, "project", defect)
    model, x = network(), images(40, low=0.3, high=0.7)
    with pytest.raises(RuntimeError, match="left"):
        attack(model, x, labels(model, x))


def disturbed(model: nn.Module) -> nn.Module:
    """In training, with a frozen submodule and parameter, and gradients of the last step."""
    model.train()
    model[1].eval()
    model[8].bias.requires_grad = False
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    return model


def condition(model: nn.Module) -> dict[str, object]:
    """Everything of a model and of the process that an attack could leave changed."""
    return {
        "modes": [module.training for module in model.modules()],
        "frozen": [parameter.requires_grad for parameter in model.parameters()],
        "gradients": [id(parameter.grad) for parameter in model.parameters()],
        "sums": [parameter.grad.sum().item() for parameter in model.parameters()],
        "state": {key: value.sum().item() for key, value in model.state_dict().items()},
        "random": torch.get_rng_state().sum().item(),
        "grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
    }


@every_attack
def test_nothing_is_left_behind(attack):
    """Frozen BatchNorm that comes back in training mode; statistics or u vectors that moved."""
    model, x = network(), images()
    y = labels(model, x)
    disturbed(model)
    before = condition(model)
    attack(model, x, y)
    assert condition(model) == before


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_behind_after_an_exception(error):
    model, x = network(), images()
    y = labels(model, x)
    disturbed(model)
    before = condition(model)

    def fail(*_):
        raise error

    handle = model[6].register_forward_hook(fail)
    with pytest.raises(error):
        fgsm(model, x, y, eps=0.1)
    handle.remove()
    assert condition(model) == before


@every_attack
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_contexts_without_gradients_change_nothing(attack, context):
    model, x = network(), images()
    y = labels(model, x)
    expected = attack(model, x, y)
    with context():
        grad_mode = (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
        x_adv = attack(model, x.clone(), y.clone())
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == grad_mode
    assert torch.equal(x_adv, expected)


@every_attack
def test_gains_are_computed_once_in_an_attack(monkeypatch, attack):
    """Weights stand still in an attack: no need to compute in every step what they imply."""
    model, x = network(), images()
    y, calls, compute = labels(model, x), [], functional.spectral_gain

    def counted(*args):
        calls.append(args)
        return compute(*args)

    monkeypatch.setattr(functional, "spectral_gain", counted)
    attack(model, x, y)
    assert len(calls) == 1


def test_attacks_nest():
    """An evaluation in `frozen` runs attacks that enter it again."""
    model, x = network().train(), images()
    with torch.inference_mode(), frozen(model):
        scores = logits(model, x, 5)
        x_adv = fgsm(model, x, scores.argmax(1), eps=0.1)
        assert not model.training
        assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    torch.testing.assert_close(x_adv, fgsm(model, x, scores.argmax(1), eps=0.1))


def test_logits_are_those_of_evaluation_mode():
    model, x = network(), images()
    expected = model(x)
    torch.testing.assert_close(logits(model.train(), x, batch_size=5), expected)
    assert not logits(model, x, 5).requires_grad


@every_attack
def test_batches_and_their_order_change_nothing(attack):
    """Random numbers, means or early stops that are shared by a batch."""
    model, x = network(), images(20)
    y, indices = labels(model, x), torch.arange(100, 120)
    whole = attack(model, x, y, indices=indices)
    parts = torch.empty_like(x)
    for part in torch.randperm(20, generator=torch.Generator().manual_seed(3)).split(6):
        parts[part] = attack(model, x[part], y[part], indices=indices[part])
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-9)


@every_attack
def test_attacks_repeat_themselves_and_take_every_memory_format(attack):
    model, x = network(), images()
    y = labels(model, x)
    x_adv = attack(model, x, y)
    assert torch.equal(attack(model, x, y), x_adv)
    last = attack(model, x.to(memory_format=torch.channels_last), y)
    torch.testing.assert_close(last, x_adv, rtol=0, atol=1e-9)


@every_attack
def test_no_image_is_no_error(attack):
    """A batch that the model gets all wrong leaves nothing to attack; an FFT would fail."""
    x, y = images()[:0], torch.zeros(0, dtype=torch.long)
    assert attack(network(), x, y).shape == x.shape


@every_norm
def test_random_starts_are_uniform_in_the_ball(norm):
    """Starts on the sphere, or all in a corner; equal starts for other images or restarts."""
    x = torch.full((4000, 1, 1, 2), 0.5)
    start = attacks._random_start(x, norm, 0.2, 0, 0, list(range(4000)))
    delta = (start - x).flatten(1) / 0.2
    radius = delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1)
    # P(radius <= r) = r^2 in both norms in two dimensions.
    quantiles = radius.square().sort().values
    assert (quantiles - torch.linspace(0, 1, 4000)).abs().max() < 0.03
    assert delta.mean(0).abs().max() < 0.05
    assert len(torch.unique(delta, dim=0)) == 4000
    other = attacks._random_start(x, norm, 0.2, 0, 1, list(range(4000)))
    assert (other == start).flatten(1).all(1).sum() == 0


def test_more_restarts_never_fool_fewer():
    """A later restart that replaces a success by a failure of higher loss."""
    model, x = network(), images(60)
    y = labels(model, x)
    options = {"norm": "linf", "eps": 0.006, "step_size": 0.004, "steps": 2}
    fooled = [
        labels(model, pgd(model, x, y, restarts=restarts, **options)) != y
        for restarts in (1, 2, 6, 12)
    ]
    for fewer, more in pairwise(fooled):
        assert (more >= fewer).all()
    assert 0 < fooled[0].sum() < fooled[-1].sum() < 60


class Seen(nn.Module):
    """Counts the images that a model is shown, and how many times it is shown some."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.images, self.times = model, 0, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert len(x) > 0
        self.images += len(x)
        self.times += 1
        return self.model(x)


LOOKS = {"cpu": Looks(1, 0.0), "elsewhere": Looks(4, 0.25), "never": Looks(10**6, 0.0)}


@pytest.fixture(params=LOOKS)
def looks(monkeypatch, request) -> Looks:
    """The images that are fooled are dropped at once, now and then, or not at all."""
    monkeypatch.setattr(attacks, "looks_on", lambda device: LOOKS[request.param])
    return LOOKS[request.param]


def plain_pgd(model, x, y, index, *, norm, eps, step_size, steps, restarts):
    """One image's x_adv (C, H, W), written as a loop."""
    best, highest = x, -math.inf
    for restart in range(restarts):
        stream = generator("cpu", 0, "pgd", restart, index)
        if norm == "linf":
            delta = 2 * torch.rand(x.shape, generator=stream) - 1
        else:
            delta = torch.randn(x.shape, generator=stream)
            delta *= torch.rand(1, generator=stream) ** (1 / x.numel()) / delta.norm()
        point = (x + eps * delta.double()).clamp(0, 1)
        for step in range(steps + 1):
            point.requires_grad_()
            scores = model(point[None])
            loss = F.cross_entropy(scores, y[None])
            (gradient,) = torch.autograd.grad(loss, point)
            point = point.detach()
            if scores.argmax() != y:
                return point
            if step == steps:
                break
            if norm == "linf":
                change = (point + step_size * gradient.sign() - x).clamp(-eps, eps)
            else:
                change = point + step_size * gradient / gradient.norm() - x
                change *= min(1, eps / change.norm())
            point = (x + change).clamp(0, 1)
        if loss > highest:
            best, highest = point, loss.item()
    return best


def small_network() -> tuple[nn.Module, torch.Tensor, torch.Tensor, range]:
    """A network that tells images apart; ten of them, labels by which it is wrong about the first,
    and indices."""
    torch.manual_seed(0)
    x = images(10, shape=(2, 4, 4))
    layers = nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 5)
    model = nn.Sequential(*layers).double().requires_grad_(False)
    model[-1].bias -= model(x).mean(0)
    y = labels(model, x)
    y[0] = (y[0] + 1) % 5
    return model, x, y, range(100, 110)


PLAIN = {
    norm: {"norm": norm, "eps": eps, "step_size": eps / 4, "steps": 9}
    for norm, eps in {"linf": 0.02, "l2": 0.15}.items()
}


@cache
def found_by_plain_pgd(norm: str, restarts: int) -> torch.Tensor:
    model, *data = small_network()
    each = zip(*data, strict=True)
    return torch.stack(
        [plain_pgd(model, *image, restarts=restarts, **PLAIN[norm]) for image in each]
    )


@pytest.mark.parametrize("restarts", [1, 2])
@every_norm
def test_pgd_is_the_plain_loop(looks, norm, restarts):
    """A fooled image that moves on, a row of another image after the batch has shrunk."""
    model, x, y, indices = small_network()
    expected = found_by_plain_pgd(norm, restarts)
    x_adv = pgd(model, x, y, indices=indices, restarts=restarts, **PLAIN[norm])
    torch.testing.assert_close(x_adv, expected, rtol=0, atol=1e-12)
    assert 3 < (labels(model, x_adv) != y).sum() < 9


def plain_simba(model, x, y, index, *, eps, basis, max_queries):
    """One image's x_adv (C, H, W) and its number of queries, written as a loop."""

    def loss_at(point):
        scores = model(point[None])
        return F.cross_entropy(scores, y[None]), scores.argmax() != y

    (loss, fooled), queries = loss_at(x), 1
    point = x
    rows, columns = (simba_module._axis(basis, size).double() for size in x.shape[1:])
    for number in simba_module._order(x.shape, basis, 0, index).tolist():
        c, rest = divmod(number, x[0].numel())
        i, j = divmod(rest, x.shape[2])
        step = torch.zeros_like(x)
        step[c] = eps * rows[i, :, None] * columns[j]
        for sign in (-1, 1):
            if fooled or queries == max_queries:
                return point, queries
            moved = (x + (point + sign * step - x).clamp(-eps, eps)).clamp(0, 1)
            moved_loss, fooled = loss_at(moved)
            queries += 1
            if fooled or moved_loss > loss:
                point, loss = moved, moved_loss
                break
    return point, queries


@cache
def found_by_plain_simba(basis: str, max_queries: int) -> tuple[torch.Tensor, list[int]]:
    model, *data = small_network()
    options = {"eps": 0.02, "basis": basis, "max_queries": max_queries}
    found = [plain_simba(model, *image, **options) for image in zip(*data, strict=True)]
    x_adv, queries = zip(*found, strict=True)
    return torch.stack(x_adv), list(queries)


@pytest.mark.parametrize("max_queries", [2, 1000])
@pytest.mark.parametrize("basis", ["pixel", "dct"])
def test_simba_is_the_plain_loop(looks, basis, max_queries):
    """A step of another image's, a query too many, a direction that is tried twice or never."""
    model, x, y, indices = small_network()
    expected, counted = found_by_plain_simba(basis, max_queries)
    options = {"eps": 0.02, "basis": basis, "max_queries": max_queries}
    x_adv, queries = simba(model, x, y, indices=indices, **options)
    assert queries.tolist() == counted
    torch.testing.assert_close(x_adv, expected, rtol=0, atol=1e-12)


class Waits(TorchDispatchMode):
    """Notes how often the model was asked before each operation that a device would wait for."""

    def __init__(self, model: "Seen"):
        super().__init__()
        self.model, self.after = model, set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name, indices = operation._schema.name, args[1] if len(args) > 1 else None
        by_mask = name in ("aten::index", "aten::index_put_", "aten::index_put") and any(
            index is not None and index.dtype == torch.bool for index in indices
        )
        if by_mask or name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select"):
            self.after.add(self.model.times)
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("attack", "times"),
    [
        (partial(pgd, norm="linf", eps=0.1, step_size=0.01, steps=10), 10),
        (partial(pgd, norm="l2", eps=0.3, step_size=0.03, steps=10), 10),
        (partial(simba_images, eps=0.01, basis="dct", max_queries=10), 10),
    ],
    ids=["pgd linf", "pgd l2", "simba"],
)
def test_no_step_waits_for_a_device(monkeypatch, attack, times):
    """The host runs ahead of a GPU, but for a look at every fourth step, the start and the end."""
    monkeypatch.setattr(attacks, "looks_on", lambda device: LOOKS["elsewhere"])
    x, w = images(), direction()
    model = Seen(Linear(w, -(x * w).flatten(1).sum(1).median().item() - 2))
    with Waits(model) as waits:
        attack(model, x, torch.zeros(len(x), dtype=torch.long))
    assert model.times == times
    assert {4, 8} <= waits.after <= {0, 4, 8, times}


def test_the_last_step_of_a_single_start_is_not_looked_at():
    """It would decide nothing, and cost a twentieth of an evaluation."""
    x = images(5)
    model = Seen(Linear(direction(), -30))
    pgd(model, x, torch.zeros(5, dtype=torch.long), norm="linf", eps=0.1, step_size=0.01, steps=4)
    assert model.images == 5 * 4


def test_fooled_images_are_not_attacked_again():
    x = images(5)
    y = torch.tensor([1, 1, 1, 0, 0])  # the model says 0, whatever happens
    model = Seen(Linear(direction(), -30))
    pgd(model, x, y, norm="linf", eps=0.1, step_size=0.01, steps=4, restarts=3)
    assert model.images == 3 * 1 + 2 * 3 * (4 + 1)


def test_a_given_start_allows_one_restart():
    x = images()
    with pytest.raises(ValueError, match="one restart"):
        pgd(network(), x, x, norm="l2", eps=1, step_size=1, steps=1, restarts=2, start=x)


@pytest.mark.parametrize(
    ("pixel", "label", "max_queries", "queries", "end"),
    [
        (0.50, 1, 9, 1, 0.50),  # misclassified: seen once
        (0.58, 1, 9, 2, 0.53),  # the first direction fools
        (0.52, 0, 9, 3, 0.57),  # the first does not help, the second fools
        (0.52, 0, 2, 2, 0.52),  # ... but comes too late
        (0.90, 1, 9, 2, 0.85),  # the first helps, the second is not tried
        (0.20, 0, 9, 3, 0.25),
        (0.20, 0, 1, 1, 0.20),
    ],
)
def test_simba_counts_every_query(pixel, label, max_queries, queries, end):
    """One pixel; the model says 1 from 0.55 on. Below: -0.05 first, then +0.05."""
    model = Seen(Linear(torch.ones(1, 1, 1).double(), -0.55))
    x, y = torch.full((1, 1, 1, 1), pixel).double(), torch.tensor([label])
    x_adv, counted = simba(model, x, y, eps=0.05, basis="pixel", max_queries=max_queries)
    assert counted.tolist() == [queries]
    assert model.images == queries
    assert x_adv.item() == pytest.approx(end)


@pytest.mark.parametrize("basis", ["pixel", "dct"])
def test_simba_sees_outputs_only_and_counts_all_of_them(basis):
    model, x = network(), images(20)
    y = labels(model, x)
    y[:3] = (y[:3] + 1) % 5
    seen = Seen(model)

    def refuse(*_):
        assert not torch.is_grad_enabled()

    seen.register_forward_hook(refuse)
    x_adv, queries = simba(seen, x, y, eps=0.03, basis=basis, max_queries=50)
    assert seen.images == queries.sum()
    assert queries[:3].tolist() == [1, 1, 1]
    assert torch.equal(x_adv[:3], x[:3])
    assert queries.max() == 50
    assert len(queries.unique()) > 3


@pytest.mark.parametrize("basis", ["pixel", "dct"])
def test_simba_draws_every_direction_once_in_an_order_of_each_image(basis):
    shape = torch.Size((2, 6, 6))
    orders = [simba_module._order(shape, basis, 0, index) for index in (0, 1)]
    assert all(order.sort().values.tolist() == list(range(72)) for order in orders)
    assert not torch.equal(*orders)
    axis = simba_module._axis(basis, 6).double()
    gram = axis @ axis.T
    torch.testing.assert_close(gram, torch.diag(gram.diagonal()))
    assert axis.abs().amax(1).tolist() == pytest.approx([1] * 6)


def test_dct_directions_come_from_low_to_high_frequencies():
    order = simba_module._order(torch.Size((3, 8, 8)), "dct", 0, 0)
    _, u, v = torch.unravel_index(order, (3, 8, 8))
    highest = torch.maximum(u, v).tolist()
    assert set(highest[:3]) == {0}
    assert set(highest[3:12]) == {1}
    assert set(highest[12:48]) == {2, 3}
    assert set(highest[48:]) == {4, 5, 6, 7}


def test_masked_gradients_stop_pgd_but_not_simba():
    """Why an evaluation needs an attack without gradients."""

    class Steps(Linear):
        def forward(self, x):
            return super().forward((x * 20).floor() / 20)

    w = direction()
    x = images(20)
    model = Steps(w, -(x * w).flatten(1).sum(1).mean().item())
    y = labels(model, x)
    x_adv = pgd(model, x, y, norm="linf", eps=0.06, step_size=0.02, steps=10, start=x)
    assert (labels(model, x_adv) == y).all()
    x_adv, _ = simba(model, x, y, eps=0.06, basis="pixel", max_queries=500)
    assert (labels(model, x_adv) != y).sum() > 5

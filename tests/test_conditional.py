"""Conditional networks: counts, explicit formulas, what each normalizer does with an embedding."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from runs import ALONE, Crash, crash_before, differing, rough_measurements, run, state_of, tiny
from torch import nn

from convnorm.catalogue import CATALOGUE
from convnorm.experiment.data import load_images
from convnorm.experiment.errors import InputError
from convnorm.experiment.run.loop import take_step
from convnorm.normalizers import Normalizer
from convnorm.spectrum import layer_norms
from gan.gain import input_gain
from gan.losses import LOSSES, Batch, r1
from gan.memory import estimate
from gan.models import build, load_generator
from gan.networks import build_discriminator, build_generator
from gan.networks.conditional import ConditionalBatchNorm2d, Conditioning, judged
from gan.trainer import Trainer

NUM = 10
FAMILIES = ("sngan_cnn", "sngan_resnet")
CONDITIONAL = {"model.arch": "sngan_cnn", "train.n_dis": 1}
# Kinds that normalize weights, and so an embedding.
NORMALIZING = [name for name, kind in CATALOGUE.items() if kind.normalizes_linear]


def pair(arch, kind="projection", normalizer="none", num_classes=NUM, **options):
    torch.manual_seed(0)
    shared = {"image_size": 16, "channels": 1, "conditioning": Conditioning(kind, num_classes)}
    if kind == "none":
        del shared["conditioning"]
    shared["options"] = {"generator_width": 4, "discriminator_width": 4} | options
    G = build_generator(arch, z_dim=8, **shared)
    torch.manual_seed(1)
    D = build_discriminator(arch, Normalizer(normalizer), **shared)
    if arch == "sngan_cnn":  # so narrow, its first logits are too small to be told from 0
        with torch.no_grad():
            for weight in D.parameters():
                weight.mul_(10)
    return G, D


def inputs(num=6):
    torch.manual_seed(2)
    return torch.randn(num, 8), torch.rand(num, 1, 16, 16) * 2 - 1, torch.arange(num) % NUM


def shuffle_gammas(G):
    """Give every class a scale and shift of its own, as training does."""
    for module in G.modules():
        if isinstance(module, ConditionalBatchNorm2d):
            nn.init.normal_(module.gammas, 1, 0.5)
            nn.init.normal_(module.betas)


def features(D, x):
    """What enters the head of a discriminator, (N, C)."""
    for layer in list(D)[:-1]:
        x = layer(x)
    return x


def trainer(**changes):
    config = tiny({**CONDITIONAL, **changes})
    return Trainer(config, load_images(config.data), ALONE)


# ------------------------------------------------------------------------------------- networks


@pytest.mark.parametrize(
    ("arch", "kind", "parameters"),
    [
        # pfnet-research/sngan_projection: 6 BatchNorms of 256 channels with 9 classes more, and an
        # embedding of 128 channels.
        ("sngan_resnet", "projection", (4_304_387, 1_055_104)),
        ("sngan_resnet", "acgan", (4_304_387, 1_055_104)),
        # BatchNorms of 512, 256 and 128 channels, and an embedding of 512 * 4 * 4; ours.
        ("sngan_cnn", "projection", (3_829_507, 3_017_793)),
        ("sngan_cnn", "acgan", (3_829_507, 3_017_803)),  # with a bias for each class, as the head
    ],
)
def test_conditional_networks_have_the_published_size(arch, kind, parameters):
    """A BatchNorm that should know the class and does not, or the last one, which should not."""
    with torch.device("meta"):
        shared = {"image_size": 32, "channels": 3, "conditioning": Conditioning(kind, NUM)}
        G = build_generator(arch, z_dim=128, **shared)
        D = build_discriminator(arch, Normalizer("none"), **shared)
    assert tuple(sum(p.numel() for p in n.parameters()) for n in (G, D)) == parameters
    last = [m for m in G.modules() if isinstance(m, nn.BatchNorm2d)][-1]
    assert last.affine  # of its own, which no class changes


@pytest.mark.parametrize("arch", FAMILIES)
@pytest.mark.parametrize("training", [True, False])
def test_a_generator_with_equal_gammas_is_the_unconditional_one(arch, training):
    """Bit for bit at the start, in both modes; other statistics, or another eps, would show."""
    z, _, labels = inputs()
    plain, conditional = (pair(arch, kind)[0].train(training) for kind in ("none", "projection"))
    assert torch.equal(plain(z), conditional(z, labels))
    assert torch.equal(conditional.eval()(z, labels), plain.eval()(z))  # the running ones too


def test_equal_gammas_of_any_value_are_plain_batch_norm():
    plain, conditional = nn.BatchNorm2d(4, eps=2e-5), ConditionalBatchNorm2d(NUM, 4, eps=2e-5)
    with torch.no_grad():
        for own, of_all in ((plain.weight, conditional.gammas), (plain.bias, conditional.betas)):
            nn.init.normal_(own)
            of_all.copy_(own.expand(NUM, -1))
    x = torch.randn(6, 4, 3, 5)
    torch.testing.assert_close(conditional(x, inputs()[2]), plain(x))


def test_each_image_has_the_scale_and_shift_of_its_class():
    norm = ConditionalBatchNorm2d(NUM, 4, eps=2e-5).double()
    shuffle_gammas(norm)
    x, labels = torch.randn(6, 4, 3, 5).double(), torch.tensor([3, 3, 0, 9, 1, 0])
    normalized = F.batch_norm(x, None, None, training=True, eps=2e-5)
    y = norm(x, labels)
    for i, label in enumerate(labels):
        scaled = normalized[i] * norm.gammas[label][:, None, None]
        torch.testing.assert_close(y[i], scaled + norm.betas[label][:, None, None])


@pytest.mark.parametrize("arch", FAMILIES)
def test_permuted_classes_permute_what_belongs_to_them(arch):
    """A label that meets another row in one of the layers."""
    G, D = pair(arch)
    shuffle_gammas(G)
    z, x, labels = inputs()
    order = torch.randperm(NUM, generator=torch.Generator().manual_seed(3))
    before = G(z, labels), D(x, labels)
    assert not torch.equal(before[0], G(z, order[labels]))
    with torch.no_grad():
        for module in [*G.modules(), *D.modules()]:
            if isinstance(module, ConditionalBatchNorm2d):
                for own in (module.gammas, module.betas):
                    own[order] = own.clone()
            if isinstance(module, nn.Embedding):
                module.weight[order] = module.weight.clone()
    assert torch.equal(G(z, order[labels]), before[0])
    assert torch.equal(D(x, order[labels]), before[1])


@pytest.mark.parametrize("arch", FAMILIES)
@pytest.mark.parametrize("normalizer", ["spectral", "convnorm"])
def test_two_classes_differ_by_the_projection_of_their_embeddings(arch, normalizer):
    """D(x, y) - D(x, y') = (e_y - e_y').h, and w.h is left where there is no class."""
    _, D = pair(arch, normalizer=normalizer)
    D.double().eval()
    _, x, y = inputs()
    x, other = x.double(), (y + 3) % NUM
    h, head = features(D, x), D[-1]
    e = head.embedding.weight
    expected = ((e[y] - e[other]) * h).sum(1)
    torch.testing.assert_close(D(x, y) - D(x, other), expected, rtol=1e-6, atol=0)
    assert expected.abs().min() > 1e-6
    torch.testing.assert_close(D(x), head.linear(h).flatten())
    torch.testing.assert_close(D(x, y), D(x) + (e[y] * h).sum(1))


@pytest.mark.parametrize("arch", FAMILIES)
def test_one_class_alone_is_the_unconditional_discriminator_with_its_row(arch):
    _, plain = pair(arch, "none")
    _, D = pair(arch)
    _, x, _ = inputs()
    row = features(D, x) @ D[-1].embedding.weight[7]
    assert row.abs().min() > 1e-3
    torch.testing.assert_close(D(x, torch.full((6,), 7)), plain(x) + row)


@pytest.mark.parametrize("arch", FAMILIES)
def test_acgan_judges_and_classifies_from_one_map(arch):
    _, plain = pair(arch, "none")
    _, D = pair(arch, "acgan")
    _, x, y = inputs()
    logits, errors = judged(D, x, y)
    torch.testing.assert_close(logits, plain(x))
    torch.testing.assert_close(D(x, y), logits)
    p = D[-1].classes(features(D, x)).softmax(1)
    assert p.std() > 0.01
    torch.testing.assert_close(errors, -p[range(6), y].log())


@pytest.mark.parametrize(
    ("changes", "num_classes", "message"),
    [
        ({"model.arch": "dcgan"}, NUM, "'projection' is not allowed with model.arch 'dcgan'; exp"),
        ({}, 1, "'projection' needs classes, and the data have only one; expected none, or"),
    ],
)
def test_what_cannot_be_conditional_is_refused(changes, num_classes, message):
    conditional = {**CONDITIONAL, "model.conditional": "projection", **changes}
    with pytest.raises(InputError, match=f"^model.conditional: {message}"):
        build(tiny(conditional), 1, num_classes)


def test_data_of_one_class_are_refused_before_anything_is_written(tmp_path):
    np.savez(tmp_path / "one.npz", images=np.zeros((20, 16, 16), np.uint8))
    data = {"data.name": "npz", "data.root": str(tmp_path / "one.npz")}
    with pytest.raises(InputError, match=r"^model.conditional: .* only one"):
        run(tmp_path / "run", {**CONDITIONAL, **data, "model.conditional": "acgan"})
    assert not (tmp_path / "run").exists()


def test_gradient_normalization_has_no_form_for_a_classifier():
    with pytest.raises(InputError, match=r"^model.gradient_normalization: .* 'acgan'"):
        tiny({**CONDITIONAL, "model.conditional": "acgan", "model.gradient_normalization": True})


# ------------------------------------------------------------------------------------ embeddings


def embedded(kind, rows=NUM, **options):
    torch.manual_seed(5)
    layer = nn.Embedding(rows, 32)
    return layer.weight.detach().clone(), Normalizer(kind, **options)(layer)


def test_what_normalizes_a_linear_layer_normalizes_an_embedding():
    assert [name for name, kind in CATALOGUE.items() if kind.normalizes_embedding] == NORMALIZING
    for kind in set(CATALOGUE) - set(NORMALIZING):
        before, embedding = embedded(kind)
        assert torch.equal(embedding.weight, before), kind


def norm_is_one(rows):
    assert torch.linalg.matrix_norm(rows, 2).item() == pytest.approx(1, abs=1e-4)
    assert rows.norm(dim=1).max() < 0.999  # of the matrix, not of each row


def rows_are_units(rows):
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(NUM))


def rows_are_orthogonal(rows):
    torch.testing.assert_close(rows @ rows.T, torch.eye(NUM), atol=0.05, rtol=0)


def classes_are_coupled(rows):
    plain = embedded("none")[0]
    shares = (plain @ plain.T).abs().sum(1, keepdim=True)
    torch.testing.assert_close(rows, plain / (shares + 1e-6).sqrt())
    assert torch.linalg.matrix_norm(rows, 2) < 1


EXPECTED = {
    "weight": rows_are_units,
    "oni": rows_are_orthogonal,
    "own": rows_are_orthogonal,
    "aol": classes_are_coupled,
}


@pytest.mark.parametrize("kind", NORMALIZING)
def test_what_becomes_of_an_embedding(kind):
    """A Linear(classes, C) would have rows that are channels: unit or orthogonal channels."""
    _, embedding = embedded(kind)
    with torch.no_grad():
        for _ in range(40):  # a power iteration moves on in every pass
            embedding(torch.arange(NUM))
        rows = embedding.eval().weight
        EXPECTED.get(kind, norm_is_one)(rows)
        labels = torch.tensor([3, 3, 8])
        assert torch.equal(embedding(labels), rows[labels])


@pytest.mark.parametrize("kind", NORMALIZING)
def test_the_factor_acts_on_an_embedding_too(kind):
    """Else the classes' part of a logit would keep its size where a gain is matched."""
    one, three = (embedded(kind, scale=scale)[1].eval().weight for scale in (1.0, 3.0))
    torch.testing.assert_close(three, 3 * one)


@pytest.mark.parametrize("kind", ["weight", "oni", "own"])
def test_a_multiplier_of_an_embedding_is_one_number_for_each_class(kind):
    _, embedding = embedded(kind, rows=7, multiplier=True)
    assert sorted(p.numel() for p in embedding.parameters())[0] == 7


@pytest.mark.parametrize("kind", ["oni", "own"])
def test_more_classes_than_channels_are_orthogonal_as_far_as_they_can_be(kind):
    _, embedding = embedded(kind, rows=50)
    assert torch.linalg.matrix_norm(embedding.weight, 2) < 2
    assert embedding.weight.isfinite().all()


# -------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("kind", CATALOGUE)
def test_every_kind_trains_a_conditional_run(kind):
    it = trainer(**{"model.conditional": "projection", "normalizer.kind": kind})
    head = it.discriminator[-1]
    before = [p.detach().clone() for p in head.embedding.parameters()]
    take_step(it)
    after = zip(before, head.embedding.parameters(), strict=True)
    assert any(not torch.equal(*two) for two in after)
    weights = [*it.generator.parameters(), *it.discriminator.parameters()]
    assert all(weight.isfinite().all() for weight in weights)


def test_a_class_that_was_not_asked_for_keeps_what_belongs_to_it():
    """Labels of the images, real and generated, are those that both networks get."""
    it = trainer(**{"model.conditional": "projection", "normalizer.kind": "none"})
    draws = it.draw(0)
    asked = replace(draws.generator.latents, labels=torch.full((8,), 4))
    it.generator_loss(replace(draws.generator, latents=asked))[0].backward()
    norms = [m for m in it.generator.modules() if isinstance(m, ConditionalBatchNorm2d)]
    for weight in [*(n.gammas for n in norms), it.discriminator[-1].embedding.weight]:
        assert weight.grad.any(1).nonzero().flatten().tolist() == [4]
    it.discriminator.zero_grad()
    (d,) = draws.discriminator
    fives = replace(d.real, labels=torch.full((8,), 5))
    it.discriminator_loss(replace(d, real=fives, latents=asked))[0].backward()
    rows = it.discriminator[-1].embedding.weight.grad.any(1)
    assert set(rows.nonzero().flatten().tolist()) == {4, 5}


def test_real_images_have_their_own_labels_and_fakes_uniform_ones():
    it = trainer(**{"model.conditional": "projection"})
    digits = load_images(tiny(CONDITIONAL).data)
    pairs = zip(digits.images, digits.labels.tolist(), strict=True)
    known = {image.numpy().tobytes(): label for image, label in pairs}
    for step in range(3):
        (draw,) = it.draw(step).discriminator
        found = [known[_pixels(image)] for image in draw.real.images]
        assert draw.real.labels.tolist() == found
    labels = torch.cat([it.draw(s).generator.latents.labels for s in range(100)])
    counts = labels.bincount(minlength=NUM)
    assert len(counts) == NUM
    assert (counts - 80).abs().max() < 5 * math.sqrt(80)


def _pixels(image):
    return ((image + 1) * 128).floor().clamp(0, 255).to(torch.uint8).numpy().tobytes()


def test_acgan_adds_what_the_classifier_gets_wrong():
    """On real images to D's loss, a tenth of that on its own to G's."""
    it = trainer(**{"model.conditional": "acgan", "normalizer.kind": "none"})
    draws, hinge = it.draw(0), LOSSES["hinge"]
    (draw,) = draws.discriminator
    loss, terms, _ = it.discriminator_loss(draw)
    fake = it.generate(draw.latents, {})
    (d_real, errors), (d_fake, _) = it.judge(draw.real), it.judge(fake)
    torch.testing.assert_close(loss, hinge.discriminator(d_real, d_fake) + errors.mean())
    torch.testing.assert_close(terms["class_d"], errors.mean())
    loss, terms = it.generator_loss(draws.generator)
    d_fake, errors = it.judge(it.generate(draws.generator.latents, {}))
    torch.testing.assert_close(loss, hinge.generator(d_fake, None) + 0.1 * errors.mean())
    torch.testing.assert_close(terms["class_g"], errors.mean())


@pytest.mark.parametrize("kind", ["projection", "acgan"])
def test_one_pass_is_two(kind):
    found = []
    for one_pass in (False, True):
        changes = {"model.conditional": kind, "train.one_pass": one_pass}
        it = trainer(**changes, **{"normalizer.kind": "none"})
        found.append(it.discriminator_loss(it.draw(0).discriminator[0])[0])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(
    "changes",
    [
        {"loss.r1": 1.0, "loss.r2": 1.0},
        {"loss.gradient_penalty": 1.0},
        {"loss.lecam": 1.0, "loss.lecam_start": 0, "train.diffaugment": "color,translation"},
        {"loss.name": "relativistic", "train.one_pass": True, "train.precision": "bfloat16"},
    ],
)
@pytest.mark.parametrize("kind", ["projection", "acgan"])
def test_what_else_acts_on_a_discriminator_acts_on_a_conditional_one(kind, changes):
    it = trainer(**{"model.conditional": kind, **changes})
    take_step(it)
    weights = [*it.generator.parameters(), *it.discriminator.parameters()]
    assert all(weight.isfinite().all() for weight in weights)


def slopes(D, x, y):
    x = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(D(x, y).sum(), x)
    return slope.flatten(1).norm(dim=1)


def test_penalties_and_gains_take_the_gradient_at_the_class_of_each_image():
    _, D = pair("sngan_cnn")
    D.double().eval()
    _, x, y = inputs()
    x, found = x.double(), {}
    for labels in (y, (y + 1) % NUM):
        batch, expected = Batch(x, labels), slopes(D, x, labels)
        penalty = r1(lambda b: D(b.images, b.labels), batch, batch, None)
        assert penalty.item() == pytest.approx((expected**2).mean().item() / 2, rel=1e-4)
        gain = input_gain(D, batch, batch).real
        assert gain == pytest.approx(expected.quantile(0.5).item())
        found[labels[0].item()] = gain
    assert len(set(found.values())) == 2


def test_gradient_normalization_normalizes_the_logit_of_the_class():
    changes = {**CONDITIONAL, "model.conditional": "projection", "normalizer.kind": "none"}
    _, plain = build(tiny(changes), 1, NUM)
    _, D = build(tiny({**changes, "model.gradient_normalization": True}), 1, NUM)
    _, x, y = inputs()
    logits = plain(x, y)
    torch.testing.assert_close(D(x, y), logits / (slopes(plain, x, y) + logits.abs()))
    assert not torch.allclose(D(x, y), D(x, (y + 1) % NUM))


@pytest.mark.parametrize("kind", ["projection", "acgan"])
def test_a_resumed_conditional_run_is_bit_identical(kind, tmp_path, monkeypatch):
    changes = {**CONDITIONAL, "model.conditional": kind, "normalizer.kind": "spectral"}
    changes["train.ema_decay"] = 0.9
    run(tmp_path / "whole", changes)
    with monkeypatch.context() as patch:
        crash_before(3, Trainer, patch)
        with pytest.raises(Crash):
            run(tmp_path / "cut", changes, checkpoint_every=2)
    assert state_of(tmp_path / "cut")["step"] == 2
    run(tmp_path / "cut", changes)
    assert differing(state_of(tmp_path / "cut"), state_of(tmp_path / "whole")) == []
    loaded = load_generator(tmp_path / "cut")
    assert loaded.classes == tuple("0123456789")
    whole = load_generator(tmp_path / "whole")
    assert torch.equal(loaded.sample(20, seed=1), whole.sample(20, seed=1))


def test_layers_are_measured_and_memory_is_estimated():
    it = trainer(**{"model.conditional": "projection"})
    with rough_measurements():
        assert len(layer_norms(it.discriminator, it.image_shape)) == 7
    more, less = (
        estimate(tiny({**CONDITIONAL, "model.conditional": kind})) for kind in ("acgan", "none")
    )
    assert more.weights > less.weights


def test_an_unconditional_checkpoint_holds_nothing_of_classes(tmp_path):
    """Else those of before would lack it."""
    run(tmp_path, {**CONDITIONAL, "steps": 1})
    assert "classes" not in state_of(tmp_path)
    assert load_generator(tmp_path).classes == ()

"""Part `gan`: a full update of SNGAN's networks for each normalizer, and what it is made of.

Against the same without a normalizer, and against a plain loop. On a CPU the groups that the table
of goals does not show have smaller batches, whose sizes are in their names: what follows from
weights alone then counts for more.
"""

from collections.abc import Iterable
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from convnorm.catalogue import CATALOGUE
from convnorm.experiment.data import load_images
from convnorm.experiment.run.loop import take_step
from device_checks.workloads import NUM_CLASSES, gan_config, make_trainer
from gan.config import GanConfig
from gan.extractors import load_extractor
from gan.models import SAMPLES, Prior, generate
from speed.bench import Bench, compared, ratio, spread, tell
from speed.copies import copies
from speed.peers import PlainLoop
from speed.score import NUM, scaled, scores, two_sets
from speed.split import split

NATIVE = "convnorm native"
GOALS = ("none", "spectral", "convnorm", NATIVE, "spectral_convnorm", "oni")
SPLIT = ("none", "spectral", "convnorm", NATIVE)
PLAIN = "plain loop, spectral"
LAST = "spectral, channels_last"
PUBLISHED_BATCH = 64  # real images in an update of the discriminator
EVERY = 5000  # updates between two evaluations of a run, for the share that these take


def config_of(
    name: str, arch: str, batch_size: int, bench: Bench, precision: str = "float32"
) -> GanConfig:
    """The published recipe with a normalizer; `batch_size` is the discriminator's."""
    grid = "native" if name == NATIVE else "full"
    kind = "convnorm" if name == NATIVE else name
    config = gan_config(bench.setup, kind, arch=arch, grid=grid, precision=precision)
    if bench.tiny:
        return config
    sizes = {"batch_size": batch_size, "generator_batch_size": 2 * batch_size}
    return replace(config, train=replace(config.train, **sizes))


def measure(bench: Bench) -> dict[str, Any]:
    """Time updates in turn; unless for the goals alone, of every kind, and take them apart."""
    found = {"sngan_cnn": against_plain_loop(bench)}
    if bench.goals:
        return {"updates": found}
    rest = ["none", *(kind for kind in CATALOGUE if kind not in GOALS)]
    small, smaller = (64, 64) if bench.on_gpu else (16, 4)
    kinds = ("none", "chain") if bench.tiny else (*CATALOGUE, NATIVE)
    for arch, batch, names in (
        ("sngan_cnn", small, kinds if bench.tiny else rest),
        ("sngan_resnet", smaller, kinds),
    ):
        group = f"{arch}, {batch} images"
        found[group] = compared(bench.in_turn(_steps(names, arch, batch, bench), slow=True))
        tell(group, found[group])
    return {
        "updates": found,
        "split": {name: taken_apart(name, small, bench) for name in SPLIT},
        "copies": {name: copied(name, smaller, bench) for name in SPLIT},
        "evaluation": evaluation(bench),
    }


def against_plain_loop(bench: Bench) -> dict[str, Any]:
    """The kinds of the table of goals, and the plain loop with spectral norm."""
    plain = config_of("none", "sngan_cnn", PUBLISHED_BATCH, bench)
    runs = _steps(GOALS, "sngan_cnn", PUBLISHED_BATCH, bench)
    usual = config_of("spectral", "sngan_cnn", PUBLISHED_BATCH, bench)
    last = replace(usual, train=replace(usual.train, channels_last=True))
    runs[LAST] = partial(take_step, make_trainer(last, bench.setup))
    runs[PLAIN] = PlainLoop(plain, load_images(plain.data), bench.device)
    found = bench.in_turn(runs, slow=True)
    against = {name: ratio(found[PLAIN], found[name]) for name in ("spectral", LAST)}
    tell("sngan_cnn", compared(found))
    for name, times in against.items():
        print(f"sngan_cnn: the plain loop takes {times} times ours, {name}", flush=True)
    return {
        **compared(found),
        "plain loop / ours": {name: asdict(times) for name, times in against.items()},
    }


def _steps(names: Iterable[str], arch: str, batch_size: int, bench: Bench) -> dict[str, Any]:
    """Name -> a full step, whose draws are in it."""
    configs = {name: config_of(name, arch, batch_size, bench) for name in names}
    return {
        name: partial(take_step, make_trainer(config, bench.setup))
        for name, config in configs.items()
    }


def taken_apart(name: str, batch_size: int, bench: Bench) -> dict[str, float]:
    """The shares of an update, see `speed.split`."""
    trainer = make_trainer(config_of(name, "sngan_cnn", batch_size, bench), bench.setup)
    shares = split(partial(take_step, trainer), bench.device)
    line = ", ".join(f"{place} {share:.0%}" for place, share in shares.items())
    print(f"sngan_cnn, {batch_size} images: {name}: {line}", flush=True)
    return shares


def copied(name: str, batch_size: int, bench: Bench) -> dict[str, Any]:
    """The casts and changes of layout of an update under bfloat16, by channel and by pixel."""
    config = config_of(name, "sngan_cnn", batch_size, bench, precision="bfloat16")
    found = {}
    for order in ("contiguous", "channels_last"):
        train = replace(config.train, channels_last=order == "channels_last")
        trainer = make_trainer(replace(config, train=train), bench.setup)
        found[order] = asdict(counted := copies(partial(take_step, trainer)))
        print(f"sngan_cnn, bfloat16, {order}: {name}: {counted}", flush=True)
    return found


def evaluation(bench: Bench) -> dict[str, Any]:
    """Seconds of a score of 10,000 images, and the share of all scores in a run's time."""
    name = "digits" if bench.tiny else "lite0@96"
    trainer = make_trainer(config_of("spectral", "sngan_cnn", PUBLISHED_BATCH, bench), bench.setup)
    extractor = load_extractor(name, bench.device)
    num = 16 if bench.tiny else NUM if bench.on_gpu else 256
    prior = Prior(trainer.config.model.z_dim, NUM_CLASSES)
    latents = prior.draw(num, 0, SAMPLES)
    images = generate(trainer.generator, latents)
    sets = two_sets(extractor(images).features.shape[1], bench)
    found = bench.in_turn(
        {
            "update": partial(take_step, trainer),
            "images": partial(generate, trainer.generator, latents),
            "features": partial(extractor, images),
            "numbers": partial(scores, *sets),
        },
        slow=True,
        calls=1,
    )
    seconds = {
        "images": scaled(found["images"], num),
        "features": scaled(found["features"], num),
        "numbers": scaled(found["numbers"], NUM),
    }
    once = sum(part.median for part in seconds.values())
    update = spread(timing.device / 1e3 for timing in found["update"]).median
    share = once / (once + EVERY * update)
    print(
        f"evaluation by {name}: {once:.1f} s for {NUM} images, {share:.1%} of a run with one in "
        f"{EVERY} updates",
        flush=True,
    )
    return {
        "extractor": name,
        "seconds": {part: asdict(each) for part, each in seconds.items()},
        "updates_between": EVERY,
        "share": share,
    }

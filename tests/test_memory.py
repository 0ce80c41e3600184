"""The memory of a training: what cannot fit is refused before anything is allocated."""

import pytest
import torch
from runs import changed, classifier_run, run, tiny, tiny_classifier

import classification.memory
import classification.models
import gan.memory
import gan.models
from classification.config import ClassifierConfig
from convnorm.experiment import memory as machine
from convnorm.experiment.errors import InputError
from convnorm.experiment.run import memory
from gan.config import GanConfig

ESTIMATES = {GanConfig: gan.memory.estimate, ClassifierConfig: classification.memory.estimate}
LARGE = {
    GanConfig: ["model.options.discriminator_width", "model.options.generator_width"],
    ClassifierConfig: ["model.options.width"],
}


def test_weights_are_counted_with_what_goes_with_them():
    config = tiny({"train.ema_decay": 0.9})
    generator, discriminator = gan.models.build(config, channels=1)
    numbers = [sum(p.numel() for p in net.parameters()) for net in (generator, discriminator)]
    assert gan.memory.estimate(config).weights == 4 * (5 * numbers[0] + 4 * numbers[1])
    config = tiny_classifier({"normalizer.kind": "none", "optim.name": "adamw"})
    network = classification.models.build(config, 10, (0.5,), (0.5,))
    number = sum(p.numel() for p in network.parameters())
    assert classification.memory.estimate(config).weights == 4 * 4 * number
    for momentum, copies in ((0.9, 3), (0.0, 2)):
        changes = {"normalizer.kind": "none", "optim.momentum": momentum, "optim.nesterov": False}
        weights = classification.memory.estimate(tiny_classifier(changes)).weights
        assert weights == 4 * copies * number


def test_a_batch_is_counted_as_autograd_keeps_it():
    """Against a real forward pass of the same network."""
    config = tiny_classifier({"normalizer.kind": "none"})
    network = classification.models.build(config, 10, (0.5,), (0.5,))
    images = torch.zeros(config.train.batch_size, 1, 8, 8)
    kept = memory.bytes_for_backward(lambda: network(images))
    assert classification.memory.estimate(config).batch == kept > images.nbytes


def test_no_more_is_expected_under_bfloat16_than_autograd_keeps():
    """The estimate is a reason to refuse: too much would refuse what fits."""
    changes = {"normalizer.kind": "none", "model.arch": "resnet18", "model.options.width": 4}
    config = tiny_classifier({**changes, "train.precision": "bfloat16"})
    network = classification.models.build(config, 10, (0.5,), (0.5,))
    images = torch.zeros(config.train.batch_size, 1, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        kept = memory.bytes_for_backward(lambda: network(images))
    assert 0.6 * kept < classification.memory.estimate(config).batch <= kept


@pytest.mark.parametrize("config", ESTIMATES)
@pytest.mark.parametrize("processes", [1, 4])
def test_a_batch_is_divided_among_processes(config, processes):
    estimate, small = ESTIMATES[config], {"train.batch_size": 64}
    if config is GanConfig:
        small["train.generator_batch_size"] = 64
    large = {key: 4 * value for key, value in small.items()}
    alone = estimate(changed(config(), small)).batch
    assert estimate(changed(config(), large), 4).batch == pytest.approx(alone, rel=0.01)


@pytest.mark.parametrize("config", ESTIMATES)
def test_the_largest_config_is_estimated_in_no_time_and_in_no_memory(config):
    changes = {key: 8192 for key in LARGE[config]} | {"train.batch_size": 65_536}
    needed = ESTIMATES[config](changed(config(), changes))
    assert needed.weights > 2**37
    assert needed.batch > 2**37
    with pytest.raises(
        InputError, match=r"^memory: training needs .* model\.options.* train\.batch_size$"
    ):
        memory.check_memory(needed, torch.device("cpu"), ("model.options", "train.batch_size"))


def test_nothing_random_is_drawn_for_it():
    before = torch.random.get_rng_state()
    gan.memory.estimate(tiny())
    classification.memory.estimate(tiny_classifier())
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("train", [run, classifier_run])
def test_a_run_that_cannot_fit_leaves_nothing_behind(train, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 10_000)
    with pytest.raises(
        InputError, match=r"needs 0\.0 GiB or more .* cpu has 0\.0 GiB left; expected"
    ):
        train(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


GROUP, OLD_GROUP = "/sys/fs/cgroup", "/sys/fs/cgroup/memory"


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        ({}, 1000 * 1024),
        ({f"{GROUP}/memory.max": "max\n", f"{GROUP}/memory.current": "7\n"}, 1000 * 1024),
        ({f"{GROUP}/memory.max": "5000\n", f"{GROUP}/memory.current": "1000\n"}, 4000),
        (
            {
                f"{GROUP}/memory.max": "5000\n",
                f"{GROUP}/memory.current": "1000\n",
                f"{GROUP}/memory.stat": "anon 600\ninactive_file 300\n",
            },
            4300,
        ),
        (
            {
                f"{OLD_GROUP}/memory.limit_in_bytes": "5000\n",
                f"{OLD_GROUP}/memory.usage_in_bytes": "1000\n",
            },
            4000,
        ),
        (  # a job of Slurm, without a container
            {
                "/proc/self/cgroup": "0::/system.slice/slurmstepd.scope/job_1/step_0\n",
                f"{GROUP}/system.slice/slurmstepd.scope/job_1/memory.max": "5000\n",
                f"{GROUP}/system.slice/slurmstepd.scope/job_1/memory.current": "2000\n",
                f"{GROUP}/system.slice/slurmstepd.scope/job_1/step_0/memory.max": "max\n",
            },
            3000,
        ),
        (
            {
                "/proc/self/cgroup": "5:devices:/\n4:cpuacct,memory:/slurm/job_1\n",
                f"{OLD_GROUP}/slurm/job_1/memory.limit_in_bytes": "5000\n",
                f"{OLD_GROUP}/slurm/job_1/memory.usage_in_bytes": "3000\n",
                f"{OLD_GROUP}/memory.limit_in_bytes": "9000\n",
                f"{OLD_GROUP}/memory.usage_in_bytes": "5000\n",
            },
            2000,
        ),
        ({"/proc/self/cgroup": "0::/../other\n", f"{GROUP}/../other/memory.max": "1"}, 1024000),
    ],
)
def test_a_container_can_have_less_than_the_machine(group, expected, monkeypatch):
    """Less what it uses, but for pages of files that the kernel can drop."""
    files = {"/proc/meminfo": "MemTotal: 9999 kB\nMemAvailable: 1000 kB\n", **group}
    monkeypatch.setattr(machine, "_read", lambda path: files.get(path, ""))
    assert machine.available_bytes() == expected

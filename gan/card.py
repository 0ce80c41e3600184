"""The card of published weights, in Markdown: what they are, their use, scores and training."""

from collections.abc import Mapping, Sequence

from convnorm.experiment.data.pixels import height_and_width
from convnorm.experiment.records import Segment
from convnorm.experiment.report.tables import markdown
from gan.config import GanConfig, OptimConfig
from gan.published import CONFIG, SAMPLES, SCORES, Published
from gan.records import ScoreRecord
from gan.score_tables import shown

# The header is for hubs, which search by it. The name of the task is Hugging Face's.
CARD = """---
library_name: convnorm
pipeline_tag: unconditional-image-generation
tags: [gan, {arch}, {kind}]
---

# {arch} with {kind}, on {data}

A generator of {colours} images of {height}x{width} pixels{of_classes}, trained as a GAN whose
discriminator is normalized by `{kind}`. {which}

![{samples}]({picture})

{samples}, none left out.

## Use

In a clone of the ConvNorm benchmarking suite, after `pip install -e '.[suite]'`:

```python
import gan

generator = gan.load("{name}")
images = generator.sample(16, seed=0)  # (16, {channels}, {height}, {width}) uint8
```

```
python scripts/generate.py {name} --num 64 --grid --out grid.png
python scripts/fid.py {name}
python scripts/train_gan.py --cfg {name}/{config}
```

The last line trains it again. Other programs read the tensors with the library safetensors; then
`generator.generator` above is the network that they are of, from latents in N(0, 1) to images in
[-1, 1].

## Scores

{scores}

## Training

{training}

## Files

{files}
"""


def text(
    name: str,
    model: Published,
    config: GanConfig,
    record: ScoreRecord | None,
    segments: Sequence[Segment],
    sizes: Mapping[str, str],
) -> str:
    """Return the card of a folder.

    name: of the folder. record: the score of these weights, if there is one. segments: of the
    training up to their step. sizes: file -> what its size is, in words.
    """
    height, width = height_and_width(config.data.image_size)
    rows = "A row of images of each class" if model.classes else "The first images"
    return CARD.format(
        name=name,
        arch=config.model.arch,
        kind=config.normalizer.kind,
        data=config.data.name,
        colours={1: "gray", 3: "RGB"}.get(model.channels, f"{model.channels}-channel"),
        channels=model.channels,
        height=height,
        width=width,
        of_classes=f" of {len(model.classes)} classes" if model.classes else "",
        which=_which(model, config),
        samples=f"{rows}, of seed 0",
        picture=SAMPLES,
        config=CONFIG,
        scores=_scores(record, name, config),
        training=markdown(("what", "value"), _training(model, config, segments), words=2),
        files=markdown(("file", "size", "SHA-256"), _files(model, sizes), words=3),
    )


def _which(model: Published, config: GanConfig) -> str:
    """Which weights of the training these are."""
    kind = "The weights are averages over steps, taken" if model.ema else "The weights are those"
    selected = ", which a score of its own selected" if model.selected else ""
    return f"{kind} after step {model.step} of {config.steps}{selected}."


def _scores(record: ScoreRecord | None, name: str, config: GanConfig) -> str:
    if record is None:
        return f"None were taken at this step; `python scripts/fid.py {name}` does."
    values, floor = record.scores | record.spreads, record.floor_values
    rows = [(each, shown(value), shown(floor[each])) for each, value in values.items()]
    real = record.real.source + (f":{record.real.split}" if record.real.split else "")
    lines = [
        markdown(("score", "value", record.floor_title), rows),
        f"By the protocol `{record.protocol['name']}`: {record.num_fake} generated images against "
        f"{record.num_real} of {real}, on features of {record.extractor.name}. `{SCORES}` has all "
        "that the numbers depend on.",
    ]
    if record.selection is not None:
        lines.append(
            f"Another draw of images against `{config.score.select}`, by which a step can be "
            f"selected, has {record.selection.headline} {shown(record.selection.ranked)}."
        )
    lines += [f"**Doubt**: {doubt}." for doubt in record.all_doubts]
    return "\n\n".join(lines)


def _training(
    model: Published, config: GanConfig, segments: Sequence[Segment]
) -> list[tuple[str, str]]:
    train, optim = config.train, config.optim
    return [
        ("data", f"{config.data.name}, SHA-256 {model.data_sha256[:16]}"),
        ("loss", config.loss.name),
        ("updates of D in a step", str(train.n_dis)),
        ("batch of D, of G", f"{train.batch_size}, {train.generator_batch_size}"),
        ("Adam", _adam(optim)),
        ("seed", str(config.seed)),
        *(
            (f"from step {each.step} on", "; ".join(f"{k} {v}" for k, v in each.facts.items()))
            for each in segments
        ),
    ]


def _adam(optim: OptimConfig) -> str:
    of_d = "" if optim.lr_d is None else f" (of D {optim.lr_d:g})"
    told = f"learning rate {optim.lr:g}{of_d}, betas {optim.beta1:g} and {optim.beta2:g}"
    if optim.decay == "none":
        return told
    steps = "" if optim.decay_steps is None else f" in {optim.decay_steps} steps"
    beta2 = "" if optim.final_beta2 is None else f", beta2 to {optim.final_beta2:g}"
    return f"{told}; {optim.decay} decay to {optim.final_lr_factor:g} of the rate{beta2}{steps}"


def _files(model: Published, sizes: Mapping[str, str]) -> list[tuple[str, str, str]]:
    return [(name, sizes[name], sha256[:16]) for name, sha256 in model.files.items()]

"""The weights that a run keeps: the last, the selected ones, and those of every so many steps."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from runs import ALONE, SELECTED, Crash, changed, crash_before, differing, run, state_of, tiny

from convnorm.experiment.errors import InputError
from convnorm.experiment.run import checkpoint
from gan import train as train_module
from gan.benchmark import GAN
from gan.keys import SELECTING
from gan.models import load_generator
from gan.records import ScoreRecord
from gan.scoring import Scorer
from gan.selection import selection_score
from gan.trainer import Trainer

QUICK = {"normalizer.kind": "none", "train.n_dis": 1}
SELECTING_RUN = {**SELECTED, **QUICK}
LONG = {**SELECTING_RUN, "steps": 6, "score.every": 1}


@pytest.fixture(scope="module")
def record() -> ScoreRecord:
    """Any record; measured once, as to load what scores need takes longer than these runs."""
    config = tiny(SELECTED)
    scorer = Scorer(config.score.selecting, config.data, ALONE, keys=SELECTING)
    return scorer(lambda num, *_: [torch.zeros(num, 1, 16, 16, dtype=torch.uint8)], 0)


@pytest.fixture
def scored(record, monkeypatch):
    """A function that takes step -> the score that it is selected by.

    The score that is reported is the number of the step.
    """

    def use(by_step: dict[int, float | None]) -> None:
        class Known:
            def __init__(self, protocol, data, process, *, keys, **rest):
                self.selects = keys == SELECTING

            def __call__(self, sample, seed, *, step, ema, **conditional):
                value = by_step[step] if self.selects else float(step)
                return replace(record, scores={**record.scores, record.headline: value})

        monkeypatch.setattr(train_module, "Scorer", Known)

    return use


def selected_step(run_dir: Path) -> int:
    """Of best.pt, which everything else that speaks of it must agree with."""
    best, saved = state_of(run_dir, "best.pt"), state_of(run_dir)["best"][-1]
    step = best["step"]
    assert saved["step"] == step
    assert differing(saved["weights"], {name: best[name] for name in ("generator", "ema")}) == []
    assert json.loads((run_dir / "summary.json").read_text())["best"]["step"] == step
    assert GAN.read(run_dir, []).selected_step == step
    return step


@pytest.mark.parametrize(
    ("scores", "step"),
    [
        ([9.0, 3.0, 5.0, 3.0, 4.0, 8.0], 2),  # of equal ones the first
        ([3.0, 4.0, 5.0, 6.0, 7.0, 8.0], 1),
        ([9.0, 8.0, 7.0, 6.0, 5.0, 4.0], 6),
        ([None, math.nan, math.inf, 6.0, None, 7.0], 4),
        ([-math.inf, 5.0, 4.0, 6.0, 7.0, math.nan], 3),
    ],
)
def test_best_pt_is_of_the_step_whose_selected_score_is_reported(tmp_path, scored, scores, step):
    """A selected score that speaks of weights that are gone cannot be checked by anybody."""
    finite = [value if value is not None and math.isfinite(value) else None for value in scores]
    scored(dict(enumerate(finite, 1)))
    run(tmp_path, LONG)
    assert selected_step(tmp_path) == step
    assert GAN.read(tmp_path, []).scores["selected"]["FD (digits)"] == float(step)


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("better", ["lower", "higher"])
def test_a_score_that_is_no_number_is_never_the_best(value, better):
    metric = SimpleNamespace(better=better)
    other = SimpleNamespace(headline="FD", ranked=value, metrics={"FD": metric})
    assert selection_score(SimpleNamespace(selection=other)) == math.inf


def test_where_higher_is_better_the_highest_is_the_best():
    def record(value):
        metric = SimpleNamespace(better="higher")
        other = SimpleNamespace(headline="CS", ranked=value, metrics={"CS": metric})
        return SimpleNamespace(selection=other)

    assert selection_score(record(9.0)) < selection_score(record(1.0))


def test_a_run_without_a_number_to_select_by_has_no_best(tmp_path, scored):
    """Of no score at all, the first step would be taken for the best."""
    scored(dict.fromkeys(range(7)))
    run(tmp_path, LONG)
    assert not (tmp_path / "best.pt").exists()
    with pytest.raises(InputError, match=r"metrics.jsonl: FD .digits. .* is a number at no step"):
        GAN.read(tmp_path, [])


def test_weights_that_are_no_numbers_are_never_the_best(tmp_path, scored, monkeypatch):
    """They make images of zeros, whose score is finite, and may be the first that is selected."""
    scored({1: 1.0, 2: 9.0})
    original = Trainer.update

    def update(self, draws):
        original(self, draws)
        if self.state.step == 0:
            next(self.state.final_generator.parameters()).data.fill_(math.nan)

    monkeypatch.setattr(Trainer, "update", update)
    trainer_steps = {**LONG, "steps": 2, "log.every": 100, "log.norms_every": 100}
    with pytest.raises(Exception, match="NaN"):
        run(tmp_path, trainer_steps)
    assert not (tmp_path / "best.pt").exists()


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_best_pt_generates_what_was_scored(tmp_path, scored, ema):
    """Catches the weights of a later step under the number of the selected one."""
    scored(dict(enumerate([9.0, 3.0, 5.0, 4.0], 1)))
    changes = {**SELECTING_RUN, "score.every": 1, "train.ema_decay": ema, "checkpoints.every": 1}
    run(tmp_path, changes)
    best = load_generator(tmp_path / "best.pt")
    assert (best.step, best.ema, best.config) == (2, ema > 0, tiny(changes))
    same, last = (
        load_generator(tmp_path / name) for name in ("checkpoints/step_0000002.pt", "last.pt")
    )
    images = best.sample(8, seed=0)
    assert torch.equal(images, same.sample(8, seed=0))
    assert not torch.equal(images, last.sample(8, seed=0))


def cut(run_dir, monkeypatch, before, changes, every):
    with monkeypatch.context() as patch:
        crash_before(before, Trainer, patch)
        with pytest.raises(Crash):
            run(run_dir, changes, checkpoint_every=every)


def test_a_resumed_run_keeps_the_same_weights(tmp_path, scored, monkeypatch):
    """A last.pt that forgets what was selected lets the next score be the best, however bad."""
    scored(dict(enumerate([9.0, 3.0, 5.0, 4.0, 2.0, 8.0], 1)))
    changes = {**LONG, "checkpoints.every": 2}
    run(tmp_path / "whole", changes)
    cut(tmp_path / "cut", monkeypatch, 4, changes, every=3)
    run(tmp_path / "cut", changes, checkpoint_every=4)
    files = ["last.pt", "best.pt", *(f"checkpoints/step_000000{step}.pt" for step in (2, 4, 6))]
    for name in files:
        assert differing(*(state_of(tmp_path / it, name) for it in ("cut", "whole"))) == []
    kept = sorted(path.name for path in (tmp_path / "cut" / "checkpoints").iterdir())
    assert kept == [Path(name).name for name in files[2:]]
    assert selected_step(tmp_path / "cut") == 5


@pytest.mark.parametrize(
    ("saved", "later", "best"),
    [
        (3, [9.0, 3.0, 5.0, 4.0, 9.0, 8.0], 2),  # last.pt knows of step 2, best.pt was of 4
        (100, [9.0, 7.0, 5.0, 4.0, 9.0, 8.0], 4),  # there was no last.pt yet
    ],
)
def test_a_kill_before_last_pt_leaves_no_other_best_pt(
    tmp_path, scored, monkeypatch, saved, later, best
):
    """On a GPU, the step that was the best may be a worse one when it is done again."""
    changes = {**LONG, "checkpoints.every": 1}
    scored(dict(enumerate([9.0, 3.0, 5.0, 1.0, 9.0, 8.0], 1)))
    cut(tmp_path, monkeypatch, 4, changes, every=saved)
    assert state_of(tmp_path, "best.pt")["step"] == 4
    scored(dict(enumerate(later, 1)))
    begun = []
    original = train_module.Journal.__init__

    def note(self, run_dir, *rest):
        file = run_dir / "best.pt"
        begun.append(state_of(run_dir, "best.pt")["step"] if file.exists() else None)
        begun.append(len(list(run_dir.glob("checkpoints/*"))))
        original(self, run_dir, *rest)

    monkeypatch.setattr(train_module.Journal, "__init__", note)
    run(tmp_path, changes)
    assert begun == ([2, 3] if saved == 3 else [None, 0])
    assert selected_step(tmp_path) == best


@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_bytes(b"PK")])
def test_a_best_pt_that_was_lost_is_made_again(tmp_path, scored, damage):
    scored(dict(enumerate([9.0, 3.0, 5.0, 4.0, 9.0, 8.0], 1)))
    run(tmp_path, LONG)
    before = state_of(tmp_path, "best.pt")
    damage(tmp_path / "best.pt")
    run(tmp_path, LONG)
    assert differing(state_of(tmp_path, "best.pt"), before) == []


@pytest.mark.parametrize(
    ("every", "end", "longer"),
    [
        (2, 3, 2),  # the end of the short run did best, and is no step of the long one
        (2, 2, 2),
        (0, 3, 5),  # of the end alone
    ],
)
def test_a_run_that_was_made_longer_selects_as_one_that_was_long(
    tmp_path, scored, every, end, longer
):
    scored({2: 5.0, 3: 1.0, 4: 6.0, 5: 7.0})
    changes = {**SELECTING_RUN, "score.every": every, "optim.decay": "none"}
    run(tmp_path / "longer", {**changes, "steps": end})
    assert selected_step(tmp_path / "longer") == end
    for name, steps in (("longer", 5), ("long", 5)):
        run(tmp_path / name, {**changes, "steps": steps})
        assert selected_step(tmp_path / name) == longer
    states = [state_of(tmp_path / it, "best.pt") for it in ("long", "longer")]
    assert differing(*states) == []


def test_the_selected_score_is_read_although_its_line_was_lost(tmp_path, scored):
    """Without it, another step would be reported than the one that best.pt holds."""
    scored(dict(enumerate([9.0, 3.0, 5.0, 4.0, 9.0, 8.0], 1)))
    run(tmp_path, LONG)
    whole = GAN.read(tmp_path, [])
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_text("".join(lines[:1] + lines[2:]))
    result = GAN.read(tmp_path, [])
    assert (result.selected_step, result.scores) == (2, whole.scores)
    assert [point.step for point in result.curve] == [1, 2, 3, 4, 5, 6]
    assert "metrics.jsonl lacks 1 of 6 records (step 2)" in result.doubts


def test_without_a_protocol_to_select_by_a_best_pt_is_left_alone(tmp_path):
    run(tmp_path, QUICK)
    assert not (tmp_path / "best.pt").exists()
    shutil.copy(tmp_path / "last.pt", tmp_path / "best.pt")
    run(tmp_path, QUICK)
    assert (tmp_path / "best.pt").exists()


@pytest.mark.parametrize(("every", "steps"), [(0, []), (2, [2, 4]), (3, [3]), (9, [])])
def test_the_generator_is_kept_every_so_many_steps(tmp_path, every, steps):
    run(tmp_path, {**QUICK, "checkpoints.every": every})
    names = [f"step_{step:07d}.pt" for step in steps]
    folder = tmp_path / "checkpoints"
    assert sorted(it.name for it in folder.glob("*")) == names
    assert [load_generator(folder / name).step for name in names] == steps
    if every == 2:
        kept = checkpoint.load(folder / names[-1], state_of(tmp_path)["format"])
        assert differing(kept["generator"], state_of(tmp_path)["generator"]) == []


def test_what_is_kept_changes_no_weight(tmp_path):
    run(tmp_path / "none", QUICK)
    run(tmp_path / "all", {**QUICK, "checkpoints.every": 1})
    states = [state_of(tmp_path / name) for name in ("none", "all")]
    assert differing(*({**state, "config": None} for state in states)) == []


def test_overwrite_deletes_what_was_kept(tmp_path):
    """Files of deleted weights would be taken for the new run's."""
    run(tmp_path, {**QUICK, "checkpoints.every": 1})
    (tmp_path / "best.pt").touch()
    run(tmp_path, {**QUICK, "checkpoints.every": 3}, overwrite=True)
    assert [it.name for it in (tmp_path / "checkpoints").iterdir()] == ["step_0000003.pt"]
    assert not (tmp_path / "best.pt").exists()


@pytest.mark.parametrize("value", [-1, 10**10, 1.5, None, "all"])
def test_a_wrong_interval_is_refused_by_its_key(value):
    with pytest.raises(InputError, match=r"checkpoints\.every"):
        changed(tiny(), {"checkpoints.every": value})

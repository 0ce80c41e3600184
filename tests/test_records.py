"""Records and their JSON: what is written is read back, and nothing else is taken for it."""

import json
import math
import sys
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
from example_results import classification, gan

from convnorm.experiment.codec import from_json, to_json
from convnorm.experiment.errors import InputError
from convnorm.experiment.records import Report


@dataclass(frozen=True)
class Leaf:
    """A record in a record."""

    n: int
    value: float


@dataclass(frozen=True)
class Tree:
    """A field of every kind that the codec knows."""

    FORMAT: ClassVar = "convnorm-suite/tree/2"

    name: str
    is_green: bool
    height: float | None
    kind: Literal["oak", "elm"]
    leaves: tuple[Leaf, ...]
    span: tuple[float, float] | None
    rings: float | tuple[float, ...]
    by_month: dict[Literal["may", "june"], dict[str, Leaf]]
    best: Leaf | None
    notes: dict[str, Any]
    age: int | None = None


TREE = Tree(
    name="a tree",
    is_green=True,
    height=None,
    kind="oak",
    leaves=(Leaf(1, 0.1), Leaf(2, -0.0)),
    span=(sys.float_info.min / 3, sys.float_info.max),
    rings=(0.1 + 0.2, 1e-300),
    by_month={"june": {"x": Leaf(3, math.pi)}, "may": {}},
    best=None,
    notes={"a": [1, 2.5, None, {"b": "c"}], "d": True},
)


def through_text(record: Any) -> Any:
    """Written into a file and read again."""
    return from_json(type(record), json.loads(json.dumps(to_json(record))), "FILE")


@pytest.mark.parametrize(
    "record",
    [
        TREE,
        replace(TREE, height=7.0, span=None, rings=2.0, best=Leaf(0, 1 / 3), leaves=()),
        gan(),
        classification(),
    ],
    ids=["many", "few", "gan", "classification"],
)
def test_what_is_written_is_read_back_to_the_last_bit(record):
    """Catches a tuple that comes back as a list, a None that is lost, and a rounded number."""
    again = through_text(record)
    assert again == record
    assert repr(again) == repr(record)  # which tells -0.0 from 0.0


def test_the_format_comes_first_and_every_field_after_it():
    assert list(to_json(TREE)) == ["format", *(field.name for field in fields(Tree))]
    assert to_json(TREE)["format"] == Tree.FORMAT
    assert to_json(gan())["format"] == "convnorm-suite/benchmark/4"


@dataclass(frozen=True)
class Seedling(Leaf):
    """A record that got a field."""

    soil: str | None = None
    rings: tuple[int, ...] = ()


def test_a_field_with_a_default_may_be_missing_and_no_other():
    """Records of before a field was added have what it is by default."""
    assert from_json(Seedling, {"n": 1, "value": 2.0}, "FILE") == Seedling(1, 2.0)
    whole = Seedling(1, 2.0, "clay", (3,))
    assert from_json(Seedling, to_json(whole), "FILE") == whole
    with pytest.raises(InputError, match=r"FILE: n: is missing; expected int"):
        from_json(Seedling, {"value": 2.0, "soil": "clay"}, "FILE")
    with pytest.raises(InputError, match=r"FILE: soil: 3; expected str or null"):
        from_json(Seedling, {"n": 1, "value": 2.0, "soil": 3}, "FILE")


def changed(*path: str | int, to: Any) -> dict[str, Any]:
    """The JSON of TREE with another value at a place; `...` takes it away."""
    content = json.loads(json.dumps(to_json(TREE)))
    place = content
    for key in path[:-1]:
        place = place[key]
    if to is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = to
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (changed("leaves", 0, "n", to="three"), "leaves.0.n: 'three'; expected int"),
        (changed("leaves", 0, "n", to=3.0), "leaves.0.n: 3.0; expected int"),
        (changed("leaves", 1, "n", to=True), "leaves.1.n: True; expected int"),
        (changed("leaves", 1, "value", to=None), "leaves.1.value: null; expected a finite number"),
        (changed("leaves", 1, "value", to=math.nan), "leaves.1.value: nan; expected a finite"),
        (changed("leaves", 1, "value", to=False), "leaves.1.value: False; expected a finite"),
        (changed("leaves", 1, "value", to=...), "leaves.1.value: is missing; expected a finite"),
        (changed("leaves", 1, "size", to=3), "leaves.1.size: no such key; expected n, value"),
        (changed("leaves", 0, to=[1, 0.1]), "leaves.0: a list of 2; expected keys and values"),
        (changed("leaves", to={"n": 1}), "leaves: keys and values; expected a list of keys and"),
        (changed("name", to=7), "name: 7; expected str"),
        (changed("name", to=...), "name: is missing; expected str"),
        (changed("is_green", to=1), "is_green: 1; expected bool"),
        (changed("height", to="tall"), "height: 'tall'; expected a finite number or null"),
        (changed("kind", to="fir"), "kind: 'fir'; expected one of oak, elm"),
        (changed("kind", to=["oak"]), "kind: a list of 1; expected one of oak, elm"),
        (changed("span", to=[1.0, 2.0, 3.0]), "span: a list of 3; expected a list of 2"),
        (changed("span", to=[1.0, "x"]), "span.1: 'x'; expected a finite number"),
        (changed("rings", to="x"), "rings: 'x'; expected a finite number or a list of a finite"),
        (changed("by_month", "july", to={}), "by_month: 'july'; expected one of may, june"),
        (changed("by_month", "june", "x", "n", to=""), "by_month.june.x.n: ''; expected int"),
        (changed("best", to={"n": 1, "value": "x"}), "best.value: 'x'; expected a finite number"),
        (changed("notes", "a", to=[math.inf]), "notes.a.0: inf; expected a finite number"),
        (changed("format", to="convnorm-suite/tree/1"), "holds 'convnorm-suite/tree/1'; expected"),
        (changed("format", to=...), "holds no format; expected 'convnorm-suite/tree/2'"),
        ([], "a list of 0; expected keys and values"),
        (changed("name", to=["x" * 10_000]), "name: a list of 1; expected str"),
    ],
)
def test_what_does_not_fit_is_one_line_with_file_key_value_and_what_was_expected(content, message):
    with pytest.raises(InputError) as error:
        from_json(Tree, content, "FILE")
    assert str(error.value).startswith(f"FILE: {message}")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200


def test_results_of_an_older_version_are_refused_and_not_misread():
    old = to_json(gan()) | {"format": "convnorm-suite/benchmark/1"}
    with pytest.raises(InputError) as error:
        from_json(Report, old, "results.json")
    expected = "holds 'convnorm-suite/benchmark/1'; expected 'convnorm-suite/benchmark/4'"
    assert str(error.value) == f"results.json: {expected}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"height": math.nan}, "Tree: height: nan; expected a finite number"),
        ({"rings": (1.0, math.inf)}, "Tree: rings: a list of 2; expected a finite number or"),
        ({"notes": {"x": math.nan}}, "Tree: notes.x: nan; expected a finite number"),
        ({"leaves": [Leaf(1, 0.1)]}, "Tree: would not be read as it was written"),
        ({"notes": {"x": (1, 2)}}, "Tree: would not be read as it was written"),
        ({"is_green": np.bool_(True)}, "Tree: is_green: "),
        ({"notes": {3: 4}}, "Tree: notes: 3; expected str"),
    ],
)
def test_what_could_not_be_read_back_is_not_written(changes, message):
    """A file that nobody can read, or that says something else, would be found too late."""
    with pytest.raises(ValueError, match=message):
        to_json(replace(TREE, **changes))

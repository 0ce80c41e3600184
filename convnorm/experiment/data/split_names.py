"""Which names of folders and files stand for training images, and which for held-out ones."""

import re
from typing import Literal

Split = Literal["train", "test"]
Kind = Literal["train", "test", "validation"]

WORDS: dict[str, Kind] = {
    **dict.fromkeys(("train", "training", "trn", "trainval"), "train"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval", "evaluation"), "validation"),
}
WORD = r"[^\W\d_]+"
NEW_WORD = r"(?<=[a-z])(?=[A-Z])"
# What may stand beside such a word in the name of a split's folder.
FILLERS = {"set", "data", "dataset", "image", "images", "img", "imgs", "split", "part", "files"}


def words(name: str) -> list[str]:
    """Return the words of a name in lower case: runs of letters, also where aNewOneBegins."""
    return re.findall(WORD, re.sub(NEW_WORD, " ", name).lower())


def kinds(name: str) -> set[Kind]:
    """Return the kinds of split that a name speaks of: `x_train` of one, `latest` of none."""
    return {WORDS[word] for word in map(_bare, words(name)) if word in WORDS}


def folder_kind(name: str) -> Kind | None:
    """Return the kind of split that a folder's name stands for; None where it is another name.

    `train`, `Training`, `train2017`, `train_images` and `trainset` are names of splits;
    `train_station` is not.
    """
    rest = [word for word in map(_bare, words(name)) if word not in FILLERS]
    return WORDS.get(rest[0]) if len(rest) == 1 else None


def counterpart(name: str) -> str:
    """Return what a name has in common with those of the other splits of its data set."""
    spaced = re.sub(NEW_WORD, " ", name).lower()
    return re.sub(WORD, lambda word: "*" if _bare(word[0]) in WORDS else word[0], spaced)


def _bare(word: str) -> str:
    """`trainset` as `train`."""
    return word[:-3] if word.endswith("set") and word[:-3] in WORDS else word

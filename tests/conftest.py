"""What holds for all tests of a process: one thread, and the digits' file is read once.

Imported by the process that hands the tests out too, which needs no torch.
"""

from functools import cache

import pytest


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """The same numbers everywhere, and no fight for the cores."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _digits_read_once():
    """Hundreds of runs would parse the same 1,797 lines of text; what is made of them is theirs."""
    import sklearn.datasets

    read = sklearn.datasets.load_digits

    @cache
    def load_digits():
        digits = read()
        for array in (digits.images, digits.data, digits.target):
            array.flags.writeable = False  # else a run could change the digits of another
        return digits

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sklearn.datasets, "load_digits", load_digits)
        yield

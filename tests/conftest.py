"""One thread per test process: the same numbers everywhere, and no fight for the cores."""

import torch

torch.set_num_threads(1)

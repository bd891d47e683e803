"""Settings of all tests of probing."""

import torch

# The problems are tiny: a second thread gains nothing and waits for the first wherever tests run side by side.
torch.set_num_threads(1)

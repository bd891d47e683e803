"""Measuring a training task: runs, gradients, noise scales, step time, and the probe that does it all."""

"""From a probe to the rest of the training: the law that all runs share, its fit, and the forecast."""

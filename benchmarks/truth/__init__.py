"""Ground truth: problems swept by brute force over batch sizes and learning rates, and the trade-off they follow."""

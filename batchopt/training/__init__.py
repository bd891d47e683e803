"""Training by a schedule: a data loader that follows it, and a small reference loop."""

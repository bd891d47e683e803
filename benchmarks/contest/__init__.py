"""Searches over recorded runs: the replay, the simulated clock, and who takes part."""

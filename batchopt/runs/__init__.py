"""Runs that were trained before, read from their logs as evidence for a forecast."""

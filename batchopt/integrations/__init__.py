"""Schedules inside training frameworks, one file for each; none of them is imported unless it is asked for."""

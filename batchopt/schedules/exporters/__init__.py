"""Schedules in the syntax of training frameworks, one file for each."""

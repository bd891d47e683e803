"""Kinds of noise scale; `kind.KINDS` is the table of them, and a new one is a file here and a line there."""

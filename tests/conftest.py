"""Hypothesis draws the same examples in every run, and no deadline makes a busy machine fail a test."""

from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

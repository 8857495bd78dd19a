"""Hypothesis draws the same examples in every run, no deadline fails a test on a busy machine, one thread computes."""

import os

from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

# Before torch and faiss are imported, and inherited by commands: sums split over threads round differently, and the
# threads of two OpenMP runtimes wait for each other by spinning.
os.environ.setdefault("OMP_NUM_THREADS", "1")

"""The benchmarks of ``scripts/bench``: each row runs what it compares side by side, in one run."""

"""The benchmarks of ``scripts/bench``. Each row measures what it compares in the same run."""

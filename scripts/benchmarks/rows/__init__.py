"""One module for each row; ``measure(bench)`` runs it."""

"""One module a row; ``measure(bench)`` runs it."""

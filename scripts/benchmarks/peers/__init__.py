"""What users would pick instead, each a program of its own that does exactly the same remote work."""

"""What users would pick instead, each doing exactly the same remote work; every module is a program of its own."""

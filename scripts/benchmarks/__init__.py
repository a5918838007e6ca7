"""What `scripts/benchmark.py` is made of: a module for each benchmark, and what they share."""

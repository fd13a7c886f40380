"""What the project measures: `python -m benchmarks`, and beside its peers `benchmarks.peers`."""

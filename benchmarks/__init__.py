"""What Prunus costs, beside what is used instead: `python -m benchmarks`, `python -m benchmarks.scaling`."""

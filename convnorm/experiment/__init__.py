"""What surrounds the method: configuration, data, runs, benchmarks, reports."""

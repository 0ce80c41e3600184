"""Many runs as one experiment: the grid, where it runs, and what its results are."""

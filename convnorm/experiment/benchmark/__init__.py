"""Many runs as one experiment: the grid, where it runs, its statistics and its report."""

"""What one run needs: the loop, checkpoints, logs, devices and processes."""

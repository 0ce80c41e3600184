"""What any run needs, whatever it trains: configuration, data, checkpoints, logs, processes."""

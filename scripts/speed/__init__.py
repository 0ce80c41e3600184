"""The parts of scripts/bench_speed.py, and the clock that they share with check_device.py."""

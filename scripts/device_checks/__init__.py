"""The parts of scripts/check_device.py, one module each, beside what they share."""

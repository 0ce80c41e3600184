"""The parts of scripts/spectrum.py: what is opened, measured, printed and drawn."""

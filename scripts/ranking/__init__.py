"""The parts of scripts/rank_scores.py: changes of images, their scores, and the page of these."""

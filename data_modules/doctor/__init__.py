"""Checks data sets on disk before anything is trained on them."""

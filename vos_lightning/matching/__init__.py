"""Matching mathematics: pure functions without parameters or state."""

"""Metrics on label maps: exact region similarity J and boundary accuracy F, and the protocols that average them."""

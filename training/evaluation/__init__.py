"""How good a network is, and what its confidence means."""

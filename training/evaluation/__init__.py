"""How good a network is, what its confidence means, and what its accounts are worth."""

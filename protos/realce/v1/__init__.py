"""realce.v1: the classifier."""

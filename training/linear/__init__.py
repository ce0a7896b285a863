"""The linear models: the network's linear part, and the baseline it has to beat."""

"""Steps: what a run does to the weights, and how it goes on where it stopped."""

"""From fitted weights to a bundle, and what people read about it."""

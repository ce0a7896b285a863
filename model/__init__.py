"""What the artefact is: network, tokenizer and bundle. Knows nothing of training or serving."""

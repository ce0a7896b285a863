"""What the artefact is: network, tokenizer and bundle. Knows nothing of training or serving."""

import os

# ONNX Runtime would tell its maker of every start, and keep a file of that at home; it looks when
# it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

"""Serves a bundle over gRPC. Never imports torch, never imports training."""

import os

# ONNX Runtime would tell its maker of every start, and keep a file of that at home; it looks when
# it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

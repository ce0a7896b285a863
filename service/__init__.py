"""Serves a bundle over gRPC. Never imports torch, never imports training."""

import model  # noqa: F401 - before ONNX Runtime: see there

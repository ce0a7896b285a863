"""Labelled rows in, bundle out."""

import model  # noqa: F401 - before ONNX Runtime: see there

"""Serves a bundle over gRPC. Never imports torch, never imports training."""

"""Labelled texts in: read, cleaned, put into batches."""

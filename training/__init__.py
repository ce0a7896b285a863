"""Labelled rows in, bundle out."""

"""Packages of the contract."""

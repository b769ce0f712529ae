"""Computation that a chapter needs and does not show: one module a chapter."""

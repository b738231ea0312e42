"""Invented worlds in which every rate follows from a formula, and search methods that are compared in them."""

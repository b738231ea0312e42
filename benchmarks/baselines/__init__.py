"""Shared by the benchmarks: the ground on which methods are compared, the baseline methods, and printing."""

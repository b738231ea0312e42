"""The library's front door: one function for each command."""

"""Pure functions on counts and paired labels: intervals and tests. No input, no output, no model."""

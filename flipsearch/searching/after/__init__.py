"""What is measured of the finalists after the search, one stage a file."""

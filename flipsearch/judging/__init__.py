"""What judges stand on: the answer apart from the thought, and finding and loading judges."""

"""The compact judge: a fitted linear model over what an answer looks like, small enough to ship."""

"""The compact judge: a fitted linear model over how an answer is built, small enough to ship."""

"""Who takes part in a step or round, and what that adds to a guarantee."""

"""How many messages become one, and what the aggregator can read."""

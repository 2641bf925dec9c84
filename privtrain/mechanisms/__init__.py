"""How one contribution is bounded, and what noise is added to a sum of them."""

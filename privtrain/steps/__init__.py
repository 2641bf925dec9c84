"""How one data holder improves a model."""

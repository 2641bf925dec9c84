"""Where parties run: in this process, on Flower, or as processes of their own."""

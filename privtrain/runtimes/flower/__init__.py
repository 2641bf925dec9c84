"""Stars that speak Flower: its Grid in this process, and its simulation on Ray."""

"""A comparison as text, CSV, LaTeX, JSON, pictures and a page."""

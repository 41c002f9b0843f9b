"""Objects -> findings about how they fit together. ``analysis.analyze`` is the front."""

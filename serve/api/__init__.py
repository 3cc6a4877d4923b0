"""HTTP: one module a door, keys, limits, the page."""

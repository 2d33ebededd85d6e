"""HTTP: the dialects, what they share (errors, who is calling, bounds), and the application. A dialect does not know the others."""

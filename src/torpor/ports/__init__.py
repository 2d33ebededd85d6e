"""The seams, as Protocols with contract docstrings."""

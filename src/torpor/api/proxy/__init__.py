"""The proxy to the ports of sandboxes, for both dialects."""

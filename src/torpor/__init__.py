"""torpor runs untrusted code in microVMs that sleep and wake in milliseconds."""

__version__ = "0.1.0"

"""The E2B dialect: what the published E2B SDKs speak."""

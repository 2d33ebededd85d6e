"""One suite per port, which every implementation, fakes included, passes. Checks are plain async functions; a rig supplies what they need."""

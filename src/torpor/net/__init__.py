"""Address plan, namespaces, taps and rules as data; apply; the pool of slots."""

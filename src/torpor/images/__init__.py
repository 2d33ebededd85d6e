"""Builds what microVMs boot from: kernel and initrd, the agent disk, the templates. Everything is cached under content digests in the home."""

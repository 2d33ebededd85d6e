"""Artefacts: memory layers, device state and manifests, committed by one rename, kept while referenced, put back into a new microVM."""

"""Base images and qcow2 overlays: made, frozen, merged and collected without starting a process, so that no tool ever parses what a guest's VMM wrote."""

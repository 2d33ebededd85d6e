"""What every store behind ports.records must do, split by port. See suite."""

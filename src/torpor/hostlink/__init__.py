"""Ways from the control plane to its hosts."""

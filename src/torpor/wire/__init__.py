"""Messages and codecs of the inner protocols, versioned. Standard library only."""

"""Files that survive a power cut, and blocking work off the event loop. Used by every room that keeps something on disk; knows none of them."""

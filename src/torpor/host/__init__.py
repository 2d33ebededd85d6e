"""The host agent: one owner task per machine, adoption, warm images, pool."""

"""Random variation of images."""

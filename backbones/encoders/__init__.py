"""Trained networks of any modality as encoders: loaded, run fast and faithfully, exported."""

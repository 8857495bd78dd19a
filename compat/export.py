"""Export a transformer: `python -m compat.export --transformer DIR --out FILE`."""

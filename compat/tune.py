"""Search the options of training: `python -m compat.tune --old STORE --new STORE --out DIR --trials N`."""

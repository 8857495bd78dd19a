"""What an extraction does to its items: views of them, their rows in the store, norms adapted to others."""

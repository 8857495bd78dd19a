"""Networks that turn images into embeddings, and how they are trained. Needs torch; knows nothing of stores."""

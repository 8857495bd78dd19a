"""Move a gallery of embeddings between the spaces of two models: fit maps, judge them, migrate with them."""

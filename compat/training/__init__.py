"""Fitting transformers to pairs of embeddings."""

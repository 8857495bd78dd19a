"""Fitting a network to images of identities, resumably."""

"""Measures of retrieval, from ids and arrays alone."""

"""Where embeddings live: chunked Zarr stores, and the other places a gallery may rest. Never imports torch."""

"""Transformers in the forms that other software serves: ONNX files, FAISS indexes, plain NumPy arrays."""

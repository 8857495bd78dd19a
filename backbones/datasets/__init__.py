"""What `--data` can be: images, pairs and texts in the forms they are published in, read and decoded."""

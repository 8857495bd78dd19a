"""What a training minimises: classification heads and the terms beside them."""

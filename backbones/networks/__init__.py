"""Networks: how they are built, what they cost, how they spare memory."""

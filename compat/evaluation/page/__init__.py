"""The page of a report: its charts, its sections and its style."""

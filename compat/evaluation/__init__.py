"""Old, new and bridged search side by side, a verdict, and the report people read."""

"""Making an old gallery usable with a new model: rewrite it through a map, check the copy, or search it as it is."""

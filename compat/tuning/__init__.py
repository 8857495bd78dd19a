"""Studies over the options of training: trials, workers that share a storage, and the page of what they found."""

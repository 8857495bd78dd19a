"""Maps between embedding spaces as scikit-learn estimators."""

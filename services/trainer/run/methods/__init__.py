"""Methods: how a frozen base gets parameters that are trained."""

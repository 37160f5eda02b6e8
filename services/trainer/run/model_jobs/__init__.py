"""Jobs on versions that exist: merging an adapter into its base, and evaluating a version."""

"""The only place where the registry's protobuf messages and domain values meet."""

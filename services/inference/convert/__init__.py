"""The only place where the inference service's protobuf messages and domain values meet."""

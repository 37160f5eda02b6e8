"""What a worker that no trainer hears writes on its own Job in Kubernetes."""

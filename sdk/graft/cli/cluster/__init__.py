"""`graft cluster`: commands that talk to a Kubernetes cluster, through the user's kubeconfig."""

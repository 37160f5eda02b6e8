"""Workers as Kubernetes Jobs. The only place of the trainer that talks to a cluster."""

from services.trainer.launchers.kubernetes.launcher import KubernetesLauncher

__all__ = ["KubernetesLauncher"]

"""Several LoRA adapters of one base as one: the trainer's merges and the endpoint's blends compute it here."""

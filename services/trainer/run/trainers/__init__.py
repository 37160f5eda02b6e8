"""Trainers: TRL's, with our rows, checkpoints and reports. One file per objective."""

"""Trackers: where a job's figures go beside the trainer. One file each; build.py chooses, reporter.py feeds them."""

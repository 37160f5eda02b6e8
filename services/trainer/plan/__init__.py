"""What a job takes in memory and time before it runs, and what to choose. No torch here: run/plan.py counts."""

"""Built-in reward functions of GRPO: what makes a written answer good, without running anybody's code."""

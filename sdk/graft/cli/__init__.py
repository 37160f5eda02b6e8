"""The command `graft`: one module per group of commands, over graft.Client."""

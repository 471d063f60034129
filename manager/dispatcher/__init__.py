"""Sessions with agents: who is alive, what each node has to run, and what became of it (docs/design/dispatcher.md)."""

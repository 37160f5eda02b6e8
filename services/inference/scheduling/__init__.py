"""Who may use the engine next: fair turns over namespaces and adapters. Knows nothing of engines or weights."""

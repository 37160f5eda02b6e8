"""Where jobs, attempts and events are kept."""

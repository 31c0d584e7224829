"""The agent's disk: what was admitted, in SQLite. Only this package touches the database."""

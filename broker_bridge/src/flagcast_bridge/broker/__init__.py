"""The broker: a client, and an embedded one."""

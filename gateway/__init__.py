"""The door on the user's machine: one port, one SSH connection, everything behind it relayed."""

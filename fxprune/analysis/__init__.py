"""What depends on what: labels solved for a program, the groups that follow, and why."""

"""Subcommands of ``affectrt`` that belong to the workstation."""

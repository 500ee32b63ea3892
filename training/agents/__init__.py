"""Agents as a task names them: built, loaded, played; never how their training is recorded or edited."""

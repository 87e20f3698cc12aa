"""The planner: validates plans, opens and closes rounds, follows a run to its end."""

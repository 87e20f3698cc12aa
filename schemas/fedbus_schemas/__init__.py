"""The wire contracts of fedbus: pydantic models and subjects. Imports nothing of ours."""

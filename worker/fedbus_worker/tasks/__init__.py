"""Tasks shipped with fedbus."""

"""Training tasks, which users write. Standard library and numpy only, valid for Python 3.9."""

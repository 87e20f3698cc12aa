"""`python -m fedbus_worker`."""

from fedbus_worker.cli import main

if __name__ == "__main__":
    main()

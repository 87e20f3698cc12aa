"""What runs on this machine: the broker, its accounts, children that end with their parent."""

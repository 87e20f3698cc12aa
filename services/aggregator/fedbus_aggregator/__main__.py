"""`python -m fedbus_aggregator`."""

from fedbus.runtime.service import command

from fedbus_aggregator.service import Aggregator

main = command("aggregator", Aggregator)

if __name__ == "__main__":
    main()

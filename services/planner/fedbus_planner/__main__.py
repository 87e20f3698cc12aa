"""`python -m fedbus_planner`."""

from fedbus.runtime.service import command

from fedbus_planner.service import Planner

main = command("planner", lambda bus, _: Planner(bus))

if __name__ == "__main__":
    main()

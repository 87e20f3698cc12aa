"""`python -m fedbus_evaluator`."""

from fedbus.runtime.service import command

from fedbus_evaluator.service import Evaluator

main = command("evaluator", Evaluator)

if __name__ == "__main__":
    main()

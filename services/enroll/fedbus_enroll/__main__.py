"""`python -m fedbus_enroll`."""

from fedbus.runtime.identity import stack_folder
from fedbus.runtime.service import command

from fedbus_enroll.service import Enroll

main = command("enroll", lambda bus, folder: Enroll(bus, stack_folder(folder)))

if __name__ == "__main__":
    main()

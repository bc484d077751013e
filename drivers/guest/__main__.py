"""Starts a program of the guest: ``python3 -I -S FOLDER NAME ...``, where FOLDER is this one.

So its modules find each other, in the guest's image as in the package of which they are a part.
"""

import sys
from importlib import import_module

if __name__ == "__main__":
    import_module(sys.argv.pop(1)).main()

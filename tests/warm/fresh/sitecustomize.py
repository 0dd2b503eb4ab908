"""Found by interpreters that a test starts without a server: imports what the test wants in all of them."""

import importlib
import os

for name in os.environ.get("TESTS_WARM_IMPORT", "").split():
    importlib.import_module(name)

"""Found by interpreters that a test starts without a server: imports what the test wants in all of them."""

from tests.warm.stand_in import import_wanted

import_wanted()

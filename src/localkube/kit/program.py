"""What people type to get here, for messages that tell them what to type."""

import os
from typing import Final

# Another program may front this one, and says how it is called.
PROGRAM: Final = os.environ.get("LOCALKUBE_PROGRAM", "localkube")

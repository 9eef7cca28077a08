"""`python -m sslzoo` is the command `sslzoo`."""

import sys

from sslzoo.cli import main

sys.exit(main())

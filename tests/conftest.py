"""Every test runs offline, on one thread and with an 80-column terminal: results do not depend on the machine."""

import os

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "COLUMNS": "80", "OMP_NUM_THREADS": "1"}

"""``ranks.py COUNT CODE ARGUMENTS``: run the code in forks, as ``python -c CODE RANK ARGUMENTS`` for all ranks.

All have to end well: once one has failed the others are killed, as they would wait for ever, and the exit code is 1.
"""

import os
import signal
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]  # for code that imports a test file
count, code, *arguments = sys.argv[1:]
ranks = set()
for rank in range(int(count)):
    child = os.fork()
    if child == 0:
        sys.argv = ["-c", str(rank), *arguments]
        exec(compile(code, f"<rank {rank}>", "exec"), {"__name__": "__main__"})
        break
    ranks.add(child)
else:
    while ranks:
        ended, status = os.wait()
        ranks.remove(ended)
        if status:
            for other in ranks:
                os.kill(other, signal.SIGKILL)
            sys.exit(1)

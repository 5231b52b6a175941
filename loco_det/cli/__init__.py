"""The command lines, one module each, with what they share in ``common``; ``tools/NAME.py`` calls ``NAME.main()``.

An import of any of them prepares the process first, before torch is imported: see :mod:`.common.process`. What a
command needs beyond its options is imported when these have been parsed, so that ``--help`` takes no seconds.
"""

from .common.process import prepare_process

prepare_process()

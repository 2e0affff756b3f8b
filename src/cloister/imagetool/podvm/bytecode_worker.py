"""Script that the image's own interpreter runs, at build time, to compile Python sources.

Never imported: the marshal format and the opcodes belong to one interpreter version, so the interpreter of the image
must do this. Reads JSON from standard input: a list of [source file, output file, name for tracebacks, optimization
level]; compiles in that order, in one process, because marshal's output depends on what was interned before.

The code is of the kind *unchecked hash* (PEP 552): it holds no time stamp, and the guest never looks for a source.
"""

import json
import py_compile
import sys


def main() -> None:
    """Compile everything that standard input names; a source that does not compile ends the build."""
    for source, output, shown, optimize in json.load(sys.stdin):
        py_compile.compile(
            source,
            cfile=output,
            dfile=shown,
            doraise=True,
            optimize=optimize,
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )


if __name__ == "__main__":
    main()

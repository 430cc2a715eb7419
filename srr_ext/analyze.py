"""``python -m srr_ext.analyze``; the command itself is in :mod:`srr_ext.cli.analyze`.

The public function ``srr_ext.analyze`` has the same name. Importing a submodule binds it as an attribute of the
package, which would hide the function, so nothing in the package imports this file. Should somebody else (a tool that
walks over all modules, say), then the import system finds the function in the place of the module and binds that: the
attribute stays what it was.
"""

import sys

if __name__ == "__main__":
    from srr_ext.cli.analyze import main

    sys.exit(main())
else:
    from srr_ext.redundancy import analyze

    sys.modules[__name__] = analyze  # type: ignore[assignment]  # a function in a table of modules, see above

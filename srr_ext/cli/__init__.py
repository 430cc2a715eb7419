"""What the commands share: flags from dataclasses, errors in one line, tables."""

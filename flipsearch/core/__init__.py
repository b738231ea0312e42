"""The records that flow, the shapes of plug-ins, errors, files and locks: the standard library and nothing above."""

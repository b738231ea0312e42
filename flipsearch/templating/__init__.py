"""Context templates: their heads, their sandboxed rendering, and the library of files in contexts/."""

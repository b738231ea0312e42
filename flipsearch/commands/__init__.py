"""The commands: each reads its flags, calls the library and prints."""

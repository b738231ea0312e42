"""From finished work to what people read: rows, pages, cards and files. Reads records only, and computes no figure."""

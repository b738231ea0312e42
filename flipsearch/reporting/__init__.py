"""From a finished study to what people read: ranked rows, a page, a context card. Reads records only."""

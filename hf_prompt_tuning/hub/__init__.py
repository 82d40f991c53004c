"""Load files from the Hub. Errors quote the server."""

"""Read files of the Hub, and say what the server said when that fails."""

"""The pages, each a function from a request to a response; they run in threads."""

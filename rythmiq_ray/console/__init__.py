"""What the consoles share, in a browser and in a terminal: connections, filters, actions, a job's log, words."""

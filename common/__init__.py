"""What every process of Jarvis shares: the queue, the results, the settings, the errors."""

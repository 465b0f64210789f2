"""What answers are judged by and compared to: losses, rewards, teachers."""

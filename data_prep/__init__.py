"""What a conversation is, and the way from raw chats to training rows. Knows nothing of `ray_apps`."""

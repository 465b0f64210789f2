"""What runs do, as settings: free of torch, so that commands read them quickly."""

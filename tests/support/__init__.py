"""What several tests share: worlds, stand-ins for servers and clusters, and readers of pages."""

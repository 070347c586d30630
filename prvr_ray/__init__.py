"""Text-to-video retrieval over long, untrimmed videos."""

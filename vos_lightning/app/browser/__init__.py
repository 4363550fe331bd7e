"""The browser app: mark objects in a video, follow them, correct them, and export them."""

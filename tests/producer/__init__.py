"""The web process: each route, through the real ASGI application and a real Redis, with a worker played by the test."""

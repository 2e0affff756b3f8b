"""The administration API: HTTP over `cloister.trust.administration`.

`application` is the ASGI application, `mount` what a running service takes of it. Nothing is imported here: the service
starts without the framework and loads it for the first request.
"""

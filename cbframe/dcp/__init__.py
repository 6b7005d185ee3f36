"""The DCP core: connections, streams, the coordinator and the threads that run them.

The only floor with client threads, sockets and a clock.
"""

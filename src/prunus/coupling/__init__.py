"""Which filters hang together?"""

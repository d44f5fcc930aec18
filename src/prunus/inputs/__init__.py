"""Which network, on which images?"""

"""Which pieces fall?"""

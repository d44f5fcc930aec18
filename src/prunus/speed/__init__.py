"""How does a network run elsewhere, and how fast?"""

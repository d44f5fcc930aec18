"""How do masks reach the computation, and back?"""

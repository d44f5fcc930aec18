"""How is a network pruned while it trains?"""

"""How important is each weight?"""

"""Who fools whom?"""

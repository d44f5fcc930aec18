"""How does it become smaller and faster?"""

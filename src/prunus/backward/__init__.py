"""Which part of a layer's passes is made at all, while it is trained?"""

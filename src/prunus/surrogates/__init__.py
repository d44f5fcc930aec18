"""What does an attack see?"""

"""How good is the evolution, against a genetic algorithm of a library?"""

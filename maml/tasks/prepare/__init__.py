"""Data sets as people have them, made into train/, val/ and test/ with a folder of images a class."""

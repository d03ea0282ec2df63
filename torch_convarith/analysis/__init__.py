"""What follows from the arithmetic: sizes solved for, layers explained, whole models traced and checked."""

"""A network on emulated microcontrollers."""

"""How optimiser steps are made: one operation after another, or compiled as a whole."""

"""The vocabulary of privtrain: values and protocols, no algorithm."""

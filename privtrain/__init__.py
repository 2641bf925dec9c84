"""privtrain: train one model under several privacy techniques and compare what each promises."""

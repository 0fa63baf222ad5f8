"""What runs next, and who may enter: pure rooms, with `now` as an argument."""
